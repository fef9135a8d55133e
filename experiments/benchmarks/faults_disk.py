"""Let the disk become full at every point of a run and of a sweep, for `faults.py`."""

import contextlib
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import faults_processes as processes
from faults_processes import command, same
from faults_run import FLAGS
from faults_sweep import compare, results, sweep_line

MOUNT = ["mount", "-t", "tmpfs", "-o"]
TRAIN = [*FLAGS, "--epochs", "4"]
BARE = [*TRAIN, "--no-figures", "--no-tensorboard"]
SIZES, FILES = range(4, 520, 20), range(2, 74, 4)  # KiB; files and directories


def may_mount(root: Path) -> bool:
    """Whether this process may mount a file system."""
    with contextlib.suppress(OSError), _disk(root, "size=1m"):
        return True
    return False


@contextlib.contextmanager
def _disk(root: Path, limit: str) -> Iterator[Path]:
    """A small disk."""
    path = root / "disk"
    path.mkdir(exist_ok=True)
    mounted = subprocess.run([*MOUNT, limit, "tmpfs", str(path)], stderr=subprocess.DEVNULL).returncode == 0
    if not mounted:
        raise OSError("mount is not permitted")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(root: Path) -> Iterator[dict]:
    """Disks of many sizes, in bytes and in files, each under a run and under a sweep; a line a disk."""
    assert processes.run(command("train", "--workdir", root / "alone", *TRAIN), root / "alone") == 0
    assert processes.run(sweep_line(root, root / "sweep"), root / "sweep") == 0, processes.said(root / "sweep")
    alone, members = processes.final(root / "alone"), results(root / "sweep")

    def equal(path: Path) -> bool:
        return same(processes.final(path), alone)

    def complete(path: Path) -> bool:
        found = compare(path, members)
        return not (found["lost"] or found["twice"] or found["differing"])

    limits = [*(f"size={size}k" for size in SIZES), *(f"nr_inodes={number}" for number in FILES)]
    for limit in sorted(limits, key=lambda limit: random.Random(limit).random()):  # so that a part of them shows all
        yield _one(root, limit, "train", lambda path: command("train", "--workdir", path, *BARE), equal)
        yield _one(root, limit, "train with figures", lambda path: command("train", "--workdir", path, *TRAIN), equal)
        yield _one(root, limit, "sweep", lambda path: sweep_line(root, path), complete)


def _one(root: Path, limit: str, name: str, line: Callable[[Path], list[str]], equal: Callable[[Path], bool]) -> dict:
    """Run a command on a small disk, then again when it has become large."""
    with _disk(root, limit) as disk:
        path, output = disk / "run", root / "output"
        code, stderr = processes.run(line(path), output), processes.said(output)
        subprocess.run([*MOUNT, "remount,size=1g,nr_inodes=0", str(disk)], check=True)
        again, more = processes.run(line(path), output), processes.said(output)
        right = again == 0 and equal(path)
        row = {"kind": "disk", "command": name, "limit": limit, "exit_code": code, "stderr": stderr}
        return row | {"exit_code_again": again, "stderr_again": more, "bit_for_bit": right}

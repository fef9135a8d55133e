"""Kill, damage and starve single runs, and give them bad input, for `faults.py`."""

import collections
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faults_processes as processes
import jax
from faults_processes import command, final, same
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mnist_flax.errors import RunError
from mnist_flax.workdir import checkpoint, claim

TESTS = Path(__file__).parents[2] / "tests"
STEPS = 12 * 32
FLAGS = ["--widths", "8", "8", "--batch-size", "16", "--train-split", "train[:500]", "--eval-split", "test[:400]",
         "--epochs", "12", "--steps-per-call", "4", "--checkpoint-every", "8", "--keep", "3"]  # fmt: skip


def straight(root: Path) -> Path:
    """A run that nobody disturbs."""
    path = root / "straight"
    subprocess.run(command("train", "--workdir", path, *FLAGS), check=True, stdout=subprocess.DEVNULL)
    return path


def kills(root: Path, number: int, rng: random.Random) -> Iterator[dict]:
    """Kill training, alone and with its writer process in turn, until `number` is reached; a line a run."""
    began = time.monotonic()
    path = straight(root)
    longest, want, killed, runs = time.monotonic() - began, final(path), 0, 0
    while killed < number:
        path, runs, moments, writers = root / f"killed-{runs}", runs + 1, [], []
        while True:
            process = processes.start(command("train", "--workdir", path, *FLAGS), path)
            try:
                process.wait(timeout=rng.uniform(0.2, longest))
                break
            except subprocess.TimeoutExpired:
                with_writer = (killed + len(moments)) % 2 == 0
                writers += processes.children(process.pid)
                processes.kill(process.pid, *(writers if with_writer else []))
                process.wait()
            saving = any(claim.checkpoints_dir(path).glob(".saving-*"))
            whom = "training and its writer" if with_writer else "training"
            moments.append({"whom": whom, "at_step": processes.latest_step(path), "while_saving": saving})
        killed += len(moments)
        ended = processes.all_end(writers, processes.ENDS_WITHIN)
        line = {"kind": "kills", "kills": moments, "exit_code": process.returncode, "stderr": processes.said(path)}
        yield line | {"bit_for_bit": process.returncode == 0 and same(final(path), want)} | _written(path, ended)
        shutil.rmtree(path)


def _written(path: Path, ended: bool) -> dict[str, Any]:
    """What the writer processes left: whether they ended and drew, and what TensorBoard shows of the steps."""
    with Image.open(path / "figures" / "curves.png") as image:
        image.load()  # raises if it is not whole
    events = EventAccumulator(str(path / "tensorboard" / "train"), size_guidance={"scalars": 0}).Reload()
    shown = collections.Counter(event.step for event in events.Scalars("loss"))
    return {"writers_ended": ended, "shown_twice": sum(n > 1 for n in shown.values()), "missing": STEPS - len(shown)}


def flip(path: Path) -> None:
    """Change one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "deleted": lambda path: path.unlink(),
    "one bit flipped": flip,
}


def damages(root: Path) -> Iterator[dict]:
    """Every file of the latest checkpoint in every way; a line each."""
    source = claim.checkpoints_dir(straight(root))
    *_, before, latest = checkpoint.steps(source)
    _, sound, _ = checkpoint.restore(source, before, warn=print)
    files = sorted(
        file.relative_to(source / str(latest)) for file in (source / str(latest)).rglob("*") if file.is_file()
    )
    for file in files:
        for way, damage in DAMAGES.items():
            line: dict[str, Any] = {"kind": "damage", "file": file.as_posix(), "way": way}
            if (source / str(latest) / file).stat().st_size == 0 and way != "deleted":
                yield line | {"outcome": "the file is empty already"}
                continue
            copy, told_of = root / "damaged", []
            shutil.copytree(source, copy)
            damage(copy / str(latest) / file)
            try:
                step, state, _ = checkpoint.restore(copy, "latest", warn=told_of.append, set_aside=True)
                right = step == before and same((jax.tree.leaves(state), []), (jax.tree.leaves(sound), []))
                aside = (copy / f"corrupt-{latest}").is_dir() and bool(told_of)
                outcome = "named, set aside, the one before loaded" if right and aside else "LOADED WRONG"
            except RunError as error:
                outcome = f"refused: {error}"
            shutil.rmtree(copy)
            yield line | {"outcome": outcome}


def bad_inputs(root: Path) -> Iterator[dict]:
    """The table of the tests, each line in its own process."""
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    environ, path = os.environ.copy(), sys.path.copy()
    sys.path.insert(0, str(TESTS))
    from conftest import TINY_FLAGS
    from test_inputs import BAD_ARGUMENTS, snapshot

    sys.path[:] = path
    os.environ.clear()  # `conftest` asks for eight devices; the runs that are killed must not see that
    os.environ.update(environ)
    root = root / "inputs"
    (root / "FOREIGN").mkdir(parents=True)
    (root / "MANUAL").mkdir()
    (root / "FOREIGN" / "thesis.tex").write_text("precious")
    (root / "FILE").write_text("precious")
    subprocess.run(command("train", "--workdir", root / "RUN", *TINY_FLAGS), check=True, stdout=subprocess.DEVNULL)
    for line in BAD_ARGUMENTS:
        name, *words = line.split()
        args = [word for w in words for word in (TINY_FLAGS if w == "TINY" else [w])]
        before = snapshot(root)
        result = subprocess.run(command(name, *args), cwd=root, env=env, capture_output=True, text=True)
        message = result.stderr.replace(str(root), "...").replace(str(TESTS.parent), "...").strip()
        untouched = snapshot(root) == before
        line = {"kind": "bad input", "line": line, "exit_code": result.returncode, "message": message}
        yield line | {"untouched": untouched}

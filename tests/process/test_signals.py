"""A signal may come at any moment: one line, the right exit code, nothing left behind."""

import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import PATIENCE, TINY_FLAGS, alarm

from mnist_flax.errors import InputError
from mnist_flax.process import files
from mnist_flax.workdir import checkpoint

ENV = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
# Imported by Python before anything else: raises a signal when the import of a module begins.
AT_IMPORT = """
import importlib.abc, os, sys
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, *_):
        if name == os.environ.get("SIGNAL_AT") and "monitor" not in str(sys.orig_argv):
            os.kill(os.getpid(), int(os.environ["SIGNAL"]))
sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("module", ["mnist_flax.config", "tyro", "jax", "optax", "mnist_flax.compiled"])
def test_during_an_import(module: str, signum: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "usercustomize.py").write_text(AT_IMPORT)
    (tmp_path / "sitecustomize.py").write_text(AT_IMPORT)
    line = [sys.executable, "-m", "mnist_flax.train", "--workdir", str(tmp_path / "exp"), *TINY_FLAGS]
    env = ENV | {"PYTHONPATH": str(tmp_path), "SIGNAL_AT": module, "SIGNAL": str(int(signum))}
    result = subprocess.run(line, env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 128 + signum
    assert result.stderr == f"stopped by {signum.name} when there was nothing to save\n"


def test_during_a_restore_no_copy_stays(finished: Path, tmp_path: Path) -> None:
    code = f"""
import os, signal, sys
from orbax.checkpoint import v1
from mnist_flax.evaluate import __main__ as evaluate
from mnist_flax.process import cli
v1.load = lambda *_: (print(os.listdir({str(tmp_path)!r}), flush=True), os.kill(os.getpid(), signal.SIGTERM))
sys.argv = ["evaluate", "--workdir", {str(finished)!r}]
cli.main(evaluate.Args, evaluate.run)
"""
    env = ENV | {"TMPDIR": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert result.returncode == 143 and re.match(r"\['mnist_flax-\w+'\]", result.stdout), result
    assert not [*tmp_path.iterdir()]


# Makes the terminal the process's own, as a shell does, and becomes the command.
IN_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", *sys.argv[1:]])
"""


def in_a_terminal(line: list[str]) -> tuple[subprocess.Popen[bytes], int]:
    """A command whose terminal is ours: its process, and our end of the terminal."""
    leader, follower = pty.openpty()
    streams = {"stdin": follower, "stdout": follower, "stderr": follower}
    env = ENV | {"TERM": "xterm", "COLUMNS": "100"}
    line = [sys.executable, "-c", IN_TERMINAL, *line]
    process = subprocess.Popen(line, **streams, env=env, start_new_session=True)
    os.close(follower)
    return process, leader


def read_until(leader: int, wanted: bytes) -> bytes:
    seen = b""
    while wanted not in seen:
        try:
            seen += os.read(leader, 65536)
        except OSError:  # the other end is closed
            assert not wanted, seen.decode()
            return seen
    return seen


LONG = [*TINY_FLAGS, "--epochs", "3000", "--checkpoint-every", "5"]


def test_a_closed_terminal_loses_nothing(tmp_path: Path) -> None:
    process, leader = in_a_terminal(["mnist_flax.train", "--workdir", str(tmp_path / "exp"), *LONG])
    read_until(leader, b"epoch 3/")
    os.close(leader)  # the kernel sends SIGHUP, and from now on printing fails
    assert process.wait(timeout=PATIENCE) == 129
    assert checkpoint.steps(tmp_path / "exp" / "checkpoints")[-1] >= 2 * 13


def test_a_second_signal_gives_the_cursor_back(tmp_path: Path) -> None:
    flags = [
        "--widths",
        "2048",
        "2048",
        "--steps-per-call",
        "100000",
        "--train-split",
        "train",
        "--checkpoint-every",
        "0",
    ]
    process, leader = in_a_terminal(["mnist_flax.train", "--workdir", str(tmp_path / "exp"), *LONG, *flags])
    read_until(leader, b"compiling")
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    seen = read_until(leader, b"\x1b[?25h")
    assert process.wait(timeout=PATIENCE) in (130, 143) and seen.rindex(b"\x1b[?25h") > seen.rfind(b"\x1b[?25l")


def test_a_reader_that_ends_does_not_end_the_training(tmp_path: Path) -> None:
    """As in `python -m mnist_flax.train ... | head -1`."""
    line = [sys.executable, "-m", "mnist_flax.train", "--workdir", str(tmp_path / "exp"), *TINY_FLAGS]
    process = subprocess.Popen(line, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout and process.stderr
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=PATIENCE) == 0 and process.stderr.read() == ""
    process.stderr.close()
    assert checkpoint.steps(tmp_path / "exp" / "checkpoints") == [13, 26]


def test_alone_but_distributed_sigterm_saves(tmp_path: Path) -> None:
    """JAX takes SIGTERM for itself when processes join."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    flags = ["--distributed", "--coordinator", coordinator, "--num-processes", "1", "--process-id", "0"]
    line = [sys.executable, "-m", "mnist_flax.train", "--workdir", str(tmp_path / "exp"), *LONG, *flags]
    process = subprocess.Popen(line, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not checkpoint.steps(tmp_path / "exp" / "checkpoints"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143 and "is saved in" in errors


def test_more_files_may_be_open_where_the_system_allows_it() -> None:
    code = """
import resource
from mnist_flax.errors import InputError
from mnist_flax.process import files
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 400))
print(files.allow_open(300), files.allow_open(500))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "True False\n", result.stderr


def test_links_and_pipes_are_found_by_name_and_by_pattern(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    files.check_entries(tmp_path, ("real", "missing", "real/*"))
    (tmp_path / "real" / "link").symlink_to("/nowhere")
    files.check_entries(tmp_path, ("real",))
    with pytest.raises(InputError, match="has a symbolic link, link; put what it points to in its place"):
        files.check_entries(tmp_path, ("real", "real/*"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="has a pipe or a device, pipe; remove it"):
        files.check_entries(tmp_path, ("pipe",))
    with alarm(5):
        assert not files.is_locked(tmp_path / "pipe")

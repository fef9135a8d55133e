"""Start commands quickly: in processes that are forked from one in which everything that commands import is imported.

Such a process is a command's in all else: its own arguments, streams, signals, devices and exit code. Importing takes
half of a small command's time. What depends on how a process begins is tested in one that begins as users' do.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

PATIENCE = 600  # seconds that a test waits for a process: no test may fail because the machine is busy
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["forking_imports"])


def run(name: str, words: list[str], cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run `python -m mnist_flax.<name> <words>`, and wait until it ends; streams are files, standard input is empty."""
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):  # Python 3.11 forgets it
        forkserver.ensure_running()
    with tempfile.TemporaryDirectory() as directory:
        streams = [Path(directory) / stream for stream in ("stdout", "stderr")]
        process = _FORKS.Process(target=_become, args=(name, words, cwd, env, streams))
        process.start()
        process.join(PATIENCE)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired([name, *words], PATIENCE)
        out, err = (stream.read_text(errors="replace") if stream.exists() else "" for stream in streams)
        return subprocess.CompletedProcess([name, *words], process.exitcode, out, err)


def _become(name: str, words: list[str], cwd: Path, env: dict[str, str], streams: list[Path]) -> None:
    """Be the command: in the forked process."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, stream in enumerate(streams, start=1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdout = open(1, "w", closefd=False)
    sys.stderr = open(2, "w", buffering=1, closefd=False)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)
    sys.argv = [f"-m mnist_flax.{name}", *words]
    runpy.run_module(f"mnist_flax.{name}", run_name="__main__", alter_sys=True)

"""Eight virtual CPU devices, strict ranks, and a tiny run that many tests share."""

import os

# In the tests' own processes XLA compiles quickly rather than well. Commands are run as users run them, without these.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["KERAS_BACKEND"] = "jax"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"

import contextlib
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import forking
import jax
import numpy as np
import pytest
from forking import PATIENCE

from mnist_flax.config import Config, Hyperparams
from mnist_flax.data import batches, datasets
from mnist_flax.process.signals import STOPPING
from mnist_flax.program import Program
from mnist_flax.state import TrainState, as_arrays, init_state

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also under nohup, for the processes that tests start
pytest_plugins = ["browsing"]  # fixtures for the tests of the page

TINY = Config(widths=(16, 16), batch_size=16, epochs=2, steps_per_call=4)
TINY_FLAGS = ["--widths", "16", "16", "--batch-size", "16", "--epochs", "2", "--steps-per-call", "4",
              "--train-split", "train[:200]", "--eval-split", "test[:203]", "--no-figures",
              "--no-tensorboard"]  # fmt: skip


def pytest_xdist_auto_num_workers() -> int:
    """Two more than there are cores: commands that tests start wait for disks, for signals and for each other."""
    return (os.cpu_count() or 1) + 2


@pytest.fixture(autouse=True, scope="module")
def bounded_memory() -> Iterator[None]:
    """A process of these tests forgets what it has compiled once it has grown large: several share the memory."""
    yield
    pages = Path("/proc/self/statm")
    if pages.exists() and int(pages.read_text().split()[1]) * resource.getpagesize() > 10**9:
        jax.clear_caches()


@pytest.fixture(scope="session")
def dataset() -> datasets.Dataset:
    """MNIST as every user gets it."""
    return datasets.open_dataset("mnist", datasets.default_data_dir())


@pytest.fixture(scope="session")
def small(dataset: datasets.Dataset) -> batches.Split:
    """200 training digits: 12 batches of 16 and a short one of 8."""
    return batches.Split(*map(jax.numpy.asarray, dataset.read("train[:200]")))


class Tiny:
    """A model of two narrow layers with everything that belongs to it."""

    def __init__(self, config: Config = TINY) -> None:
        self.config = config
        self.program = Program(config.static(), (28, 28, 1), num_classes=10, steps_per_epoch=13)
        self.model = self.program.model

    def hparams(self, **overrides: float) -> Hyperparams:
        """As arrays."""
        return as_arrays(Hyperparams(**overrides))

    def init(self, hparams: Hyperparams) -> TrainState:
        """The state before the first step."""
        return init_state(hparams, program=self.program)


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    return Tiny()


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def command() -> Command:
    """Run `python -m mnist_flax.<name> ...` as a user does: one device, a process of its own.

    Unless the call changes the environment or the streams, it is forked, see `forking`.
    """

    def run(name: str, *args: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
        env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
        if kwargs.keys() <= {"cwd"}:
            return forking.run(name, [*map(str, args)], Path(kwargs.get("cwd", Path.cwd())), env)  # type: ignore
        env |= dict(kwargs.pop("env", {}))  # type: ignore
        line = [sys.executable, "-m", f"mnist_flax.{name}", *map(str, args)]
        return subprocess.run(line, capture_output=True, text=True, env=env, timeout=PATIENCE, **kwargs)  # type: ignore

    return run


@pytest.fixture(scope="session")
def finished(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a finished tiny run; read only, copy it to change it."""
    path = tmp_path_factory.mktemp("runs") / "finished"
    result = command("train", "--workdir", path, *TINY_FLAGS)
    assert result.returncode == 0, result.stderr
    return path


@contextlib.contextmanager
def alarm(seconds: int) -> Iterator[None]:
    """Fail if the block does not end by itself."""

    def ring(*_: object) -> None:
        raise AssertionError(f"no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def restore_signals() -> Iterator[None]:
    """Commands run in this process install handlers and hooks."""
    before = {s: signal.getsignal(s) for s in STOPPING}
    hooks, wakeup = (sys.excepthook, sys.unraisablehook), signal.set_wakeup_fd(-1)
    yield
    signal.set_wakeup_fd(wakeup)
    for signum, handler in before.items():
        signal.signal(signum, handler)
    sys.excepthook, sys.unraisablehook = hooks


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The inodes of the files and directories that the test has brought to the disk."""
    inodes, fsync = set(), os.fsync

    def note(descriptor: int) -> None:
        inodes.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    return inodes


def assert_trees_equal(a: object, b: object) -> None:
    """Bit for bit."""
    leaves_a, leaves_b = (jax.tree_util.tree_leaves_with_path(t) for t in (a, b))
    assert len(leaves_a) == len(leaves_b)
    for (path, x), (_, y) in zip(leaves_a, leaves_b, strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=jax.tree_util.keystr(path))

"""A run's figures and event files, written by a process of its own, so that training does not wait for them.

    with Scribe(figures=True, tensorboard=True) as scribe:
        scribe.tell(Begin(...))
        scribe.tell(Steps(...))
        scribe.tell(Epoch(...))
        scribe.tell(End())

The other end of the pipe is `desk`. When training is killed the pipe ends, and the desk writes what it was told.
"""

import contextlib
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mnist_flax.config import Config
from mnist_flax.data import Dataset

if TYPE_CHECKING:
    from mnist_flax.graph import Node


@dataclass(frozen=True)
class Begin:
    """What is going to be trained."""

    path: Path
    config: Config
    dataset: Dataset
    graph: "list[Node]"
    start: int
    """Finished updates."""
    history: list[dict[str, Any]]
    """The lines of `metrics.jsonl` so far."""


@dataclass(frozen=True)
class Steps:
    """Scalars of the latest steps."""

    last: int
    """Finished updates behind them."""
    values: dict[str, np.ndarray]
    """float [K] by name."""


@dataclass(frozen=True)
class Epoch:
    """What is known behind an epoch."""

    lines: list[dict[str, Any]]
    """Of `metrics.jsonl`."""
    params: Any
    """numpy arrays that nobody changes."""
    logits: np.ndarray | None
    """float32 [K, B, C] of the evaluation split in order, filled up at the end; None where no process has all."""


@dataclass(frozen=True)
class End:
    """The run is finished."""


Message = Begin | Steps | Epoch | End


class Scribe:
    """The training's end of the pipe. Whatever befalls the other end, training goes on."""

    def __init__(self, *, figures: bool, tensorboard: bool) -> None:
        """Start the process; it gets ready while training does. None is needed for nothing."""
        flags = {"--figures": figures, "--tensorboard": tensorboard, "--traceback": "--traceback" in sys.argv}
        line = [sys.executable, "-m", "mnist_flax.desk", *(flag for flag, given in flags.items() if given)]
        self._process = subprocess.Popen(line, stdin=subprocess.PIPE) if figures or tensorboard else None
        self._sender = ThreadPoolExecutor(1)  # a full pipe must not stop the training
        self._begun = False

    def __enter__(self) -> "Scribe":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait until all is written. Again, it does nothing."""
        if not self._begun:
            self.dismiss()
        self._sender.shutdown()
        if self._process and self._process.stdin:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            self._process.wait()

    def dismiss(self) -> None:
        """End the process before it is told anything; from now on nothing is written."""
        if self._process:
            self._process.kill()
            self._process.communicate()
        self._process = None

    def tell(self, message: Message) -> None:
        """Send a message, without waiting for it to arrive."""
        self._begun = True
        self._sender.submit(self._send, message)

    def wait(self) -> None:
        """Return when all that was told is in the pipe, where it outlives this process."""
        self._sender.submit(lambda: None).result()

    def _send(self, message: Message) -> None:
        if self._process and self._process.stdin:
            with contextlib.suppress(BrokenPipeError):  # the desk has said itself what befell it
                pickle.dump(message, self._process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
                self._process.stdin.flush()

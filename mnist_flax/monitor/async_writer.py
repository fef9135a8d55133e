"""Write a run's figures and TensorBoard files in a separate process, so that training does not wait for them.

    with AsyncWriter(figures=True, tensorboard=True) as writer:
        writer.send(RunStarted(...))  # then StepScalars, EpochDone, RunFinished

The other end of the pipe is `writer_process`. If training is killed the pipe ends, and what was sent is still written.
Messages hold plain values: reading them needs no JAX.
"""

import contextlib
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mnist_flax.config import Config
from mnist_flax.data.datasets import Dataset

Node = tuple[str, str, list[str]]
"""An operation of a network: its name, in which a slash opens a group; its kind; the names of its inputs."""


@dataclass(frozen=True)
class RunStarted:
    """What is going to be trained."""

    path: Path
    config: Config
    dataset: Dataset
    graph: list[Node]
    start: int  # finished updates
    history: list[dict[str, Any]]  # the lines of `metrics.jsonl` so far


@dataclass(frozen=True)
class StepScalars:
    """Scalars of the latest steps."""

    last: int  # finished updates after them
    values: dict[str, np.ndarray]  # float [K] by name; NaN where nothing was measured


@dataclass(frozen=True)
class EpochDone:
    """What is known after an epoch."""

    lines: list[dict[str, Any]]  # of `metrics.jsonl`: train and eval
    params: Any  # numpy arrays that nobody changes
    first_layer: np.ndarray  # float32 [units, H, W, C], the incoming weights of the first layer's units
    logits: np.ndarray | None
    """float32 [K, B, C] of the evaluation split in order, filled up at the end; None where no process has all."""


@dataclass(frozen=True)
class RunFinished:
    """The run is finished."""


Message = RunStarted | StepScalars | EpochDone | RunFinished


class AsyncWriter:
    """The training's end of the pipe. If the writer process fails, training goes on."""

    def __init__(self, *, figures: bool, tensorboard: bool) -> None:
        """Start the process, which gets ready while training does. Without figures and TensorBoard there is none."""
        flags = {"--figures": figures, "--tensorboard": tensorboard, "--traceback": "--traceback" in sys.argv}
        line = [
            sys.executable,
            "-m",
            "mnist_flax.monitor.writer_process",
            *(flag for flag, given in flags.items() if given),
        ]
        self._process = subprocess.Popen(line, stdin=subprocess.PIPE) if figures or tensorboard else None
        self._sender = ThreadPoolExecutor(1)  # a full pipe must not stop the training
        self._started = False

    def __enter__(self) -> "AsyncWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait until everything is written. A second call does nothing."""
        if not self._started:
            self.cancel()
        self._sender.shutdown()
        if self._process and self._process.stdin:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            self._process.wait()

    def cancel(self) -> None:
        """End the process before anything is sent; from now on nothing is written."""
        if self._process:
            self._process.kill()
            self._process.communicate()
        self._process = None

    def send(self, message: Message) -> None:
        """Send a message, without waiting for it to arrive."""
        self._started = True
        self._sender.submit(self._send, message)

    def flush(self) -> None:
        """Return when every message is in the pipe, where it outlives this process."""
        self._sender.submit(lambda: None).result()

    def _send(self, message: Message) -> None:
        if self._process and self._process.stdin:
            with contextlib.suppress(BrokenPipeError):  # the writer process has said why it ended
                pickle.dump(message, self._process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
                self._process.stdin.flush()

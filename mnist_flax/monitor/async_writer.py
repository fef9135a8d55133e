"""Send messages to a separate process that writes figures and TensorBoard files, so that training does not wait.

    with AsyncWriter(figures=True, tensorboard=True) as writer:
        writer.send(RunStarted(...))  # then StepScalars, EpochDone, RunFinished

`writer_process` reads them from a pipe. If training is killed, what was sent is still written. Messages hold no JAX
arrays, so that the writer process does not import JAX. Training never waits long for that process: if it does not
answer for `_PATIENCE` seconds, it is ended, with a warning, and training goes on.
"""

import contextlib
import pickle
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mnist_flax.config import Config
from mnist_flax.data.datasets import Dataset
from mnist_flax.process.terminal import warn

Node = tuple[str, str, list[str]]
"""An operation of a network: its name (a slash opens a group), its kind, the names of its inputs."""


@dataclass(frozen=True)
class RunStarted:
    """The first message: what is going to be trained."""

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
    logits: np.ndarray | None  # float32 [N, C] of the evaluation split; None if not all are here


@dataclass(frozen=True)
class RunFinished:
    """The last message of a run that was not stopped."""


Message = RunStarted | StepScalars | EpochDone | RunFinished


_PATIENCE = 60.0  # seconds


class AsyncWriter:
    """Starts the writer process and sends it messages. If that process fails, training goes on."""

    def __init__(self, *, figures: bool, tensorboard: bool) -> None:
        """Start the writer process early, as its imports take time; or none, if there is nothing to write."""
        flags = {"--figures": figures, "--tensorboard": tensorboard, "--traceback": "--traceback" in sys.argv}
        line = [sys.executable, "-m", "mnist_flax.monitor.writer_process", *(flag for flag in flags if flags[flag])]
        self._process: subprocess.Popen[bytes] | None = None
        if figures or tensorboard:  # in a separate session: a signal from the terminal is for the training alone
            self._process = subprocess.Popen(line, stdin=subprocess.PIPE, start_new_session=True)
        self._sender = ThreadPoolExecutor(1)  # a full pipe must not stop the training
        self._started = False
        self._last = 0  # finished updates of the latest scalars in the pipe

    def __enter__(self) -> "AsyncWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait until everything is written. A second call does nothing."""
        if not self._started:
            self.cancel()
        if self._process:
            self.flush()
        if self._process:
            try:
                self._process.communicate(timeout=_PATIENCE)  # closes the pipe, and waits for the process to end
            except subprocess.TimeoutExpired:
                self._give_up()
        self._process = None
        self._sender.shutdown()

    def cancel(self) -> None:
        """Kill the writer process; nothing is written from now on."""
        process, self._process = self._process, None
        if process:
            process.kill()  # also if it is stopped
            process.wait()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()  # type: ignore[union-attr]

    def send(self, message: Message) -> None:
        """Send a message, without waiting until it is in the pipe."""
        self._started = True
        self._sender.submit(self._send, message)

    def flush(self) -> None:
        """Return when every message is in the pipe: it arrives even if this process is then killed."""
        sent: Future[None] = self._sender.submit(lambda: None)
        try:
            sent.result(_PATIENCE)
        except TimeoutError:
            self._give_up()

    def _give_up(self) -> None:
        done = f" after step {self._last}" if self._last else ""
        warn(f"the process that writes figures and tensorboard does not answer{done}: they end here; training goes on")
        self.cancel()

    def _send(self, message: Message) -> None:
        if (process := self._process) and process.stdin:
            with contextlib.suppress(BrokenPipeError):  # the writer process has ended, and printed why
                pickle.dump(message, process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
                process.stdin.flush()
                self._last = message.last if isinstance(message, StepScalars) else self._last

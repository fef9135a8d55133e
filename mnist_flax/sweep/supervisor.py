"""Start the worker processes of a sweep on this host, show how far they are, and start again those that were killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from mnist_flax.errors import RunError
from mnist_flax.process.signals import Stopped, StopSignals
from mnist_flax.sweep.progress import SweepProgress
from mnist_flax.sweep.stages import Sweep

_PIPE = "MNIST_FLAX_SUPERVISOR"  # names a worker's end of the supervisor's pipe
_RESTARTS = 3  # in a row, without a member that gets done


def train(sweep: Sweep, workers: int, remaining: Callable[[], float | None], signals: StopSignals) -> None:
    """Train until every member is done. The workers share the trial queue, and nothing else.

    `remaining` estimates the seconds that are left.
    Raises `RunError` if they end before, and `Stopped` if a signal says so.
    """
    pool = _Workers(sweep.path, workers)
    with signals.deferred(), SweepProgress(remaining) as progress:
        try:
            pool.start()
            progress.say(f"{workers} workers; their output is in {sweep.path}/worker-*.log")
            while pool.running():
                if signals.received:
                    break
                stage = sweep.current()
                progress.watch(stage)
                for line in pool.replace_killed(stage.left()):
                    progress.say(line)
                time.sleep(1)
        finally:
            codes = pool.stop(signals.received or signal.SIGTERM)
    if signum := signals.received:
        if any(code not in (0, 128 + signum, -signum) for code in codes):
            raise RunError(f"stopped by {signal.Signals(signum).name}, and not all was saved ({pool.why(codes)})")
        raise Stopped(signum, f"what was running is saved in {sweep.path}")
    if left := sweep.current().left():
        raise RunError(f"{left} members are left ({pool.why(codes)}); run the same command again")


def stop_with_it() -> None:
    """In a worker: stop, as by SIGTERM, when the supervisor ends, however it ends."""

    def wait(pipe: int) -> None:
        os.read(pipe, 1)  # nobody writes: it returns when the other end is closed
        os.kill(os.getpid(), signal.SIGTERM)

    if pipe := os.environ.pop(_PIPE, ""):
        threading.Thread(target=wait, args=(int(pipe),), daemon=True).start()


class _Workers:
    """The worker processes. They hold one end of a pipe, the supervisor the other, which the kernel closes for it."""

    def __init__(self, path: Path, number: int) -> None:
        self._logs = [path / f"worker-{index}.log" for index in range(1, number + 1)]
        self._theirs, self._ours = os.pipe()
        self._line = [sys.executable, "-m", "mnist_flax.sweep", *sys.argv[1:], "--worker"]
        self._processes: list[subprocess.Popen[bytes]] = []
        self._left, self._restarts = -1, 0  # members, at the last restart; restarts since that changed

    def start(self) -> None:
        """Start all."""
        for log in self._logs:
            self._processes.append(self._start(log))

    def running(self) -> bool:
        """Whether any of them is."""
        return None in [process.poll() for process in self._processes]  # poll all: one not polled stays a zombie

    def replace_killed(self, left: int) -> list[str]:
        """Start those again that a signal has ended, such as the kernel's when memory is short; say which."""
        lines = []
        for index, process in enumerate(self._processes):
            if (code := process.poll()) is None or code >= 0:
                continue
            if left != self._left:
                self._left, self._restarts = left, 0
            if self._restarts < _RESTARTS * len(self._processes):
                self._restarts += 1
                self._processes[index] = self._start(self._logs[index])
                lines.append(f"worker {index + 1} was ended by {signal.Signals(-code).name}, and starts again")
        return lines

    def stop(self, signum: int) -> list[int]:
        """Ask all to stop, and wait until they have; returns their exit codes."""
        for process in self._processes:
            process.send_signal(signum)
        return [process.wait() for process in self._processes]

    def why(self, codes: list[int]) -> str:
        """Why the workers ended, each in its own words."""
        reasons = []
        for index, (log, code) in enumerate(zip(self._logs, codes, strict=True), start=1):
            errors = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("error: ")]
            said = errors[-1].removeprefix("error: ") if errors and code > 0 else f"see {log}"
            ended = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            reasons.append(f"worker {index} {ended}: {said}")
        return "; ".join(reasons)

    def _start(self, log: Path) -> "subprocess.Popen[bytes]":
        share = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION") or f"{0.75 / len(self._logs):.3f}"
        # Each would take 75 % of a GPU's memory.
        env = os.environ | {_PIPE: str(self._theirs), "XLA_PYTHON_CLIENT_MEM_FRACTION": share}
        with log.open("a") as file:
            return subprocess.Popen(
                self._line, stdout=file, stderr=file, start_new_session=True, pass_fds=[self._theirs], env=env
            )

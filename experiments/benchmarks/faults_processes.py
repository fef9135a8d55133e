"""Start commands of this package, kill their processes, and compare what they leave, for `faults.py`."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

from mnist_flax.workdir import checkpoint, claim

Final = tuple[list[np.ndarray], list[dict]]
ENDS_WITHIN = 300.0  # seconds; a process that needs more is taken to hang


def command(name: str, *args: object) -> list[str]:
    """The command line of a program of this package."""
    return [sys.executable, "-m", f"mnist_flax.{name}", *map(str, args)]


def start(line: list[str], output: Path, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a process; its stdout is appended to `output`.out, its stderr to `output`.err."""
    with open(f"{output}.out", "ab") as out, open(f"{output}.err", "ab") as err:
        return subprocess.Popen(line, stdout=out, stderr=err, env=env)


def run(line: list[str], output: Path) -> int:
    """Run a command to its end; returns its exit code, or -9 if it hangs."""
    process = start(line, output)
    try:
        return process.wait(ENDS_WITHIN)
    except subprocess.TimeoutExpired:
        kill(process.pid, *children(process.pid))
        return process.wait()


def said(output: Path) -> list[str]:
    """What processes wrote to stderr since the last call, without their directory and what JAX and Gloo log."""
    file = Path(f"{output}.err")
    lines = file.read_text(errors="replace").replace(str(output.parent), "...").splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return [line for line in lines if line and not re.match(r"[EWIF]\d{4} |\[Gloo\]", line)]


def children(pid: int) -> list[int]:
    """The processes that a process has started and that still run; Linux only."""
    with contextlib.suppress(OSError):
        tasks = [file.read_text().split() for file in Path(f"/proc/{pid}/task").glob("*/children")]
        return [int(child) for each in tasks for child in each]
    return []


def kill(*pids: int) -> None:
    """`kill -9`."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def all_end(pids: list[int], seconds: float) -> bool:
    """Whether all processes end within so many seconds."""
    until = time.monotonic() + seconds
    while any(map(_runs, pids)):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def _runs(pid: int) -> bool:
    """Whether a process runs; one that has ended and is not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def latest_step(path: Path) -> int:
    """The latest checkpoint of a run; 0 if there is none."""
    return max(checkpoint.steps(claim.checkpoints_dir(path)), default=0)


def final(path: Path) -> Final:
    """Every array of the last checkpoint, and the metrics without their timings."""
    _, state, _ = checkpoint.restore(claim.checkpoints_dir(path), "latest", warn=print)
    lines = [json.loads(row) for row in claim.metrics_file(path).read_text().splitlines()]
    return jax.tree.leaves(state), [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def same(a: Final, b: Final) -> bool:
    """Bit for bit."""
    return a[1] == b[1] and len(a[0]) == len(b[0]) and all(map(lambda x, y: x.tobytes() == y.tobytes(), a[0], b[0]))

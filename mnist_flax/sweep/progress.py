"""What a sweep shows while it runs: a live table on a terminal, a line an epoch into a pipe."""

import statistics
import sys
import time
from typing import TYPE_CHECKING

from mnist_flax.process.terminal import say

if TYPE_CHECKING:
    from mnist_flax.loop import Event
    from mnist_flax.sweep.members import Member


class SweepProgress:
    """Where a stage stands: members done, running, epoch, best, median, time left."""

    def __init__(self) -> None:
        self._live = None
        self._stage, self._done, self._total = "", 0, 0
        self._epochs, self._seconds = 0.0, 0.0  # of members, in this process
        self._said: object = None
        self._first: tuple[int, float] = 0, 0.0  # members done, and when, as `watch` first saw a stage
        if sys.stdout.isatty():
            from rich.live import Live

            self._live = Live(transient=True, refresh_per_second=4)

    def __enter__(self) -> "SweepProgress":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def begin(self, stage: str, done: int, total: int) -> None:
        """A population of a stage is about to start."""
        self._stage, self._done, self._total = stage, done, total
        if self._live:
            self._live.update(f"{stage}: {done} of {total} members done; compiling")

    def wait(self, members: int) -> None:
        """Nothing is left to claim; other workers are training the rest."""
        if self._said != (said := f"waiting for {members} members that other workers are training"):
            self.say(said)
        self._said = said

    def update(self, event: "Event", members: "list[Member]") -> None:
        """Show where this process's population stands after a call."""
        config, total_steps = members[0].run.config, members[0].program.total_steps
        done = event.step * config.epochs / total_steps  # epochs, with the share of this one
        self._seconds += event.seconds + event.evaluation_seconds
        self._epochs += event.metrics.examples.shape[-1] * len(members) * config.epochs / total_steps
        left = (self._total - self._done) * config.epochs - done * len(members)
        clock = _clock(left * self._seconds / self._epochs)
        scores = [
            m.history["history"][-1]["accuracy"] for m in members if m.diverged_at is None and m.history["history"]
        ]
        diverged = sum(member.diverged_at is not None for member in members)
        if self._live or event.evaluation is not None:
            epoch = f"{done:.0f}" if event.evaluation is not None else f"{done:.1f}"
            self._show(len(members), f"{epoch} of {config.epochs}", scores, diverged, clock)

    def watch(self, stage: str, done: int, total: int, running: list[dict[int, float]]) -> None:
        """Show where a stage stands that other processes train: of each running member the objective by epoch."""
        if stage != self._stage:
            self._first = done, time.monotonic()
        self._stage, self._done, self._total = stage, done, total
        begun = [values for values in running if values]
        epoch = f"{max(map(max, begun), default=0)}"
        rate = (done - self._first[0]) / max(time.monotonic() - self._first[1], 1e-9)
        clock = _clock((total - done) / rate) if rate else ""
        if self._live or self._said != (stage, done):
            self._show(len(running), epoch, [values[max(values)] for values in begun], 0, clock)
        self._said = stage, done

    def say(self, text: str) -> None:
        """Print a line above the table."""
        if self._live:
            self._live.console.print(text, highlight=False)
        else:
            say(text)

    def _show(self, running: int, epoch: str, scores: list[float], diverged: int, left: str) -> None:
        done = f"{self._done} of {self._total}"
        best, median = (f"{f(scores):.2%}" if scores else "" for f in (max, statistics.median))
        if not self._live:
            text = f"{self._stage}: {done} done, {running} running, epoch {epoch}"
            text += f", accuracy: best {best}, median {median}" if scores else ""
            text += f", {diverged} diverged" if diverged else ""
            say(text + (f", about {left} left" if left else ""))
            return
        from rich.box import SIMPLE
        from rich.table import Table

        table = Table(box=SIMPLE, padding=(0, 1), collapse_padding=True, pad_edge=False)
        for name in ("stage", "done", "running", "epoch", "best", "median", "diverged", "left"):
            table.add_column(name, justify="left" if name == "stage" else "right")
        table.add_row(self._stage, done, f"{running}", epoch, best, median, f"{diverged or ''}", left)
        self._live.update(table)


def _clock(seconds: float) -> str:
    """A duration, rounded for reading at a glance."""
    minutes = round(max(seconds, 0) / 60)
    if minutes < 1:
        return f"{max(seconds, 0):.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{seconds / 3600:.1f} h"

"""Show the progress of a sweep: a live table on a terminal, one line per epoch in a pipe or a file."""

import statistics
import sys
import time
from typing import TYPE_CHECKING

from mnist_flax.process.terminal import printable, say

if TYPE_CHECKING:
    from mnist_flax.loop import Event
    from mnist_flax.sweep.members import Member
    from mnist_flax.sweep.stages import Stage


class SweepProgress:
    """Where a stage stands: members done and running, the best of both, time left."""

    def __init__(self) -> None:
        self._live = None
        self._stage, self._done, self._total = "", 0, 0
        self._best = 0.0  # accuracy among the members that are done
        self._epochs, self._seconds = 0.0, 0.0  # that members have taken in this process
        self._said: object = None  # by the last call, so that nothing is printed twice
        self._first: tuple[int, float] = 0, 0.0  # members done, and when, at the first `watch` of a stage
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

    def begin(self, stage: "Stage") -> None:
        """Show that a population of a stage is about to start."""
        self._count(stage)
        if self._live:
            self._live.update(f"{self._stage}: {self._done} of {self._total} members done; compiling")

    def wait(self, members: int) -> None:
        """Say that other workers are training all members that are left."""
        if self._said != (said := f"waiting for {members} members that other workers are training"):
            self.say(said)
        self._said = said

    def update(self, event: "Event", members: "list[Member]") -> None:
        """Show where this process's population stands after a call."""
        config, total_steps = members[0].run.config, members[0].program.total_steps
        done = event.step * config.epochs / total_steps  # epochs, with a fraction
        self._seconds += event.seconds + event.evaluation_seconds
        self._epochs += event.metrics.examples.shape[-1] * len(members) * config.epochs / total_steps
        left = (self._total - self._done) * config.epochs - done * len(members)
        if self._live or event.evaluation is not None:
            finite = [member for member in members if member.diverged_at is None]
            scores = [member.history["history"][-1]["accuracy"] for member in finite if member.history["history"]]
            epoch = f"{done:.0f}" if event.evaluation is not None else f"{done:.1f}"
            clock = _clock(left * self._seconds / self._epochs)
            self._show(len(members), f"{epoch} of {config.epochs}", scores, len(members) - len(finite), clock)

    def watch(self, stage: "Stage") -> None:
        """Show where a stage stands that other processes train."""
        before, running = self._stage, [trial.intermediate_values for trial in stage.queue.running()]
        self._count(stage)
        done = self._done
        if stage.name != before:
            self._first = done, time.monotonic()
        if self._live or self._said != (stage.name, done):
            scored = [values for values in running if values]  # accuracy by epoch
            rate = (done - self._first[0]) / max(time.monotonic() - self._first[1], 1e-9)
            clock = _clock((self._total - done) / rate) if rate else ""
            epoch, scores = max(map(max, scored), default=0), [values[max(values)] for values in scored]
            self._show(len(running), f"{epoch}", scores, 0, clock)
        self._said = stage.name, done

    def say(self, text: str) -> None:
        """Print a line above the table."""
        if self._live:
            self._live.console.print(printable(text), highlight=False, markup=False, emoji=False)
        else:
            say(text)

    def _count(self, stage: "Stage") -> None:
        finished = stage.finished()
        self._stage, self._done, self._total = stage.name, len(finished), len(stage.members)
        self._best = max((stage.queue.objective(trial) or 0.0 for trial in finished), default=0.0)

    def _show(self, running: int, epoch: str, scores: list[float], diverged: int, left: str) -> None:
        done = f"{self._done} of {self._total}"
        top, median = max([self._best, *scores]), f"{statistics.median(scores):.2%}" if scores else ""
        best = f"{top:.2%}" if top else ""
        if not self._live:
            text = f"{self._stage}: {done} done, {running} running, epoch {epoch}"
            text += f", accuracy: best of all {best}" if best else ""
            text += f", median of the running {median}" if median else ""
            text += f", {diverged} diverged" if diverged else ""
            say(text + (f", about {left} left" if left else ""))
            return
        from rich.box import SIMPLE
        from rich.table import Table

        table = Table(box=SIMPLE, padding=(0, 1), collapse_padding=True, pad_edge=False)
        for name in ("stage", "done", "running", "epoch", "best of all", "median of running", "diverged", "left"):
            table.add_column(name, justify="left" if name == "stage" else "right")
        table.add_row(self._stage, done, f"{running}", epoch, best, median, f"{diverged or ''}", left)
        self._live.update(table)


def _clock(seconds: float) -> str:
    """A duration in seconds, minutes or hours, rounded."""
    minutes = round(max(seconds, 0) / 60)
    if minutes < 1:
        return f"{max(seconds, 0):.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{seconds / 3600:.1f} h"

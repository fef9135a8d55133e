"""Show the progress of a sweep: a live table on a terminal, one line per epoch in a pipe or a file."""

import math
import statistics
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from mnist_flax.process.terminal import printable, say

if TYPE_CHECKING:
    from mnist_flax.loop import Event
    from mnist_flax.sweep.members import Member
    from mnist_flax.sweep.stages import Stage

_ESTIMATE_SECONDS = 5.0  # between two estimates while other processes train


class SweepProgress:
    """Where a stage stands: members done and running, the best of both; and the time left for the whole sweep."""

    def __init__(self, remaining: Callable[[], float | None]) -> None:
        self._remaining, self._live = remaining, None
        self._end: float | None = None  # when the sweep will be finished, by the last estimate
        self._estimated = -math.inf  # when that was made
        self._stage, self._done, self._total = "", 0, 0
        self._stopped = 0  # of those that are done
        self._best = 0.0  # accuracy among the members that are done
        self._said: object = None  # by the last call, so that nothing is printed twice
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
        if event.evaluation is not None:
            self._estimate()
        if self._live or event.evaluation is not None:
            finite = [member for member in members if member.diverged_at is None]
            scores = [member.history["history"][-1]["accuracy"] for member in finite if member.history["history"]]
            epoch = f"{done:.0f}" if event.evaluation is not None else f"{done:.1f}"
            self._show(len(members), f"{epoch} of {config.epochs}", scores, len(members) - len(finite))

    def update_lanes(self, stage: "Stage", members: "list[Member]", lanes: int) -> None:
        """Show where this process's members stand after an epoch, which differs between them."""
        self._count(stage)
        self._estimate()
        finite = [member for member in members if member.diverged_at is None and member.history["history"]]
        lines = [member.history["history"][-1] for member in finite]
        low, high = (which((line["epoch"] for line in lines), default=0) for which in (min, max))
        epoch = f"{low} to {high}" if low < high else f"{high}"
        scores, diverged = [line["accuracy"] for line in lines], len(members) - len(finite)
        self._show(len(members), f"{epoch} of {members[0].run.config.epochs}", scores, diverged, lanes)

    def watch(self, stage: "Stage") -> None:
        """Show where a stage stands that other processes train."""
        running = [trial.intermediate_values for trial in stage.queue.running()]
        self._count(stage)
        if self._live or self._said != (stage.name, self._done):
            if time.monotonic() > self._estimated + _ESTIMATE_SECONDS:  # it counts all trials
                self._estimate()
            scored = [values for values in running if values]  # accuracy by epoch
            epoch, scores = max(map(max, scored), default=0), [values[max(values)] for values in scored]
            self._show(len(running), f"{epoch}", scores, 0)
        self._said = stage.name, self._done

    def say(self, text: str) -> None:
        """Print a line above the table."""
        if self._live:
            self._live.console.print(printable(text), highlight=False, markup=False, emoji=False)
        else:
            say(text)

    def _count(self, stage: "Stage") -> None:
        finished = stage.finished()
        self._stage, self._done, self._total = stage.name, len(finished), len(stage.members)
        self._stopped = sum("stopped" in trial.user_attrs for trial in finished)
        self._best = max((stage.queue.objective(trial) or 0.0 for trial in finished), default=0.0)

    def _estimate(self) -> None:
        left, self._estimated = self._remaining(), time.monotonic()
        self._end = None if left is None else time.monotonic() + left

    def _show(self, running: int, epoch: str, scores: list[float], diverged: int, lanes: int = 0) -> None:
        left = "" if self._end is None else clock(self._end - time.monotonic())
        done = f"{self._done} of {self._total}"
        top, median = max([self._best, *scores]), f"{statistics.median(scores):.2%}" if scores else ""
        best = f"{top:.2%}" if top else ""
        if not self._live:
            text = f"{self._stage}: {done} done, {running} running, epoch {epoch}"
            text += f", accuracy: best of all {best}" if best else ""
            text += f", median of the running {median}" if median else ""
            text += f", {diverged} diverged" if diverged else ""
            text += f", {running} of {lanes} lanes in use" if lanes else ""
            text += f", {self._stopped} stopped" if self._stopped else ""
            say(text + (f", about {left} left" if left else ""))
            return
        from rich.box import SIMPLE
        from rich.table import Table

        table = Table(box=SIMPLE, padding=(0, 1), collapse_padding=True, pad_edge=False)
        in_lanes = f"{running} of {lanes}" if lanes else f"{running}"
        titles = ("best", "median") if lanes else ("best of all", "median of running")  # all fit into 80 columns
        columns = {"stage": self._stage, "done": done, "running": in_lanes, "epoch": epoch}
        columns |= dict(zip(titles, (best, median), strict=True)) | {"diverged": f"{diverged or ''}"}
        columns |= ({"stopped": f"{self._stopped}"} if lanes else {}) | {"left": left}
        for name in columns:
            table.add_column(name, justify="left" if name == "stage" else "right")
        table.add_row(*columns.values())
        self._live.update(table)


def clock(seconds: float) -> str:
    """A duration in seconds, minutes or hours, rounded."""
    if seconds < 100:
        return f"{max(seconds, 0):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

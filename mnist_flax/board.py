"""What a sweep shows while it runs: a live table on a terminal, a line an epoch into a pipe.

board = Board()
board.begin("selection", done=16, total=80)
board.update(event, members)  # after every call
"""

import statistics
import sys
from typing import TYPE_CHECKING

from mnist_flax import console

if TYPE_CHECKING:
    from rich.table import Table

    from mnist_flax.fit import Event
    from mnist_flax.members import Member


class Board:
    """The running population: epoch, best, median, time left."""

    def __init__(self) -> None:
        self._live = None
        self._stage, self._done, self._total = "", 0, 0
        self._epochs, self._seconds = 0.0, 0.0  # of members, in this process
        self._waited = False
        if sys.stdout.isatty():
            from rich.live import Live

            self._live = Live(transient=True, refresh_per_second=4)

    def __enter__(self) -> "Board":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def begin(self, stage: str, done: int, total: int) -> None:
        """A population of a stage is about to start."""
        self._stage, self._done, self._total, self._waited = stage, done, total, False
        if self._live:
            self._live.update(f"{stage}: {done} of {total} members done; compiling")

    def wait(self, members: int) -> None:
        """Nothing is left to claim; other workers are training the rest."""
        if not self._waited:
            self.say(f"{self._stage or 'members'}: waiting for {members} that other workers are training")
        self._waited = True

    def update(self, event: "Event", members: "list[Member]") -> None:
        """Show where a population stands after a call."""
        config, plan_steps = members[0].recorded.config, members[0].total_steps
        done = event.step * config.epochs / plan_steps  # epochs, this one's share included
        self._seconds += event.seconds + event.evaluation_seconds
        self._epochs += event.metrics.examples.shape[-1] * len(members) * config.epochs / plan_steps
        left = (self._total - self._done) * config.epochs - done * len(members)
        clock = _clock(left * self._seconds / self._epochs)
        scores = [m.info["history"][-1]["accuracy"] for m in members if m.diverged_at is None and m.info["history"]]
        best, median = (f"{f(scores):.2%}" if scores else "" for f in (max, statistics.median))
        diverged = sum(member.diverged_at is not None for member in members)
        if self._live:
            self._live.update(
                self._table(f"{done:.1f} of {config.epochs}", len(members), best, median, diverged, clock)
            )
        elif event.evaluation is not None:
            text = f"{self._stage} {self._done}+{len(members)} of {self._total}, epoch {event.epoch}/{config.epochs}"
            text += f": {config.eval_split} accuracy: best {best}, median {median}" if best else ""
            console.say(text + (f", {diverged} diverged" if diverged else "") + f", about {clock} left")

    def say(self, text: str) -> None:
        """Print a line above the table."""
        if self._live:
            self._live.console.print(text, highlight=False)
        else:
            console.say(text)

    def _table(self, epoch: str, running: int, best: str, median: str, diverged: int, clock: str) -> "Table":
        from rich.box import SIMPLE
        from rich.table import Table

        table = Table(box=SIMPLE, padding=(0, 1), collapse_padding=True, pad_edge=False)
        for name in ("stage", "done", "running", "epoch", "best", "median", "diverged", "left"):
            table.add_column(name, justify="left" if name == "stage" else "right")
        done = f"{self._done} of {self._total}"
        table.add_row(self._stage, done, f"{running}", epoch, best, median, f"{diverged}", clock)
        return table


def _clock(seconds: float) -> str:
    """Seconds in words of a glance."""
    minutes = round(max(seconds, 0) / 60)
    if minutes < 1:
        return f"{max(seconds, 0):.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{seconds / 3600:.1f} h"

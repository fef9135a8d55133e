"""Print lines, warnings and progress to the terminal."""

import errno
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Track = Callable[[Iterable[Any], str, int], Iterable[Any]]
"""Shows progress: takes items, a description and their number, and gives the items."""


def printable(text: str) -> str:
    r"""Escape what is not printable, as \x1b: in a name it could end the line, or control a terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def say(text: str = "") -> None:
    """Print lines at once, also into a pipe. If nobody reads any more, what goes on does so in silence."""
    try:
        print("\n".join(map(printable, text.split("\n"))), flush=True)
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO):  # the reader has ended; the terminal is gone
            raise
        mute()


def mute() -> None:
    """Print nothing more on stdout; warnings and errors still appear."""
    sys.stdout = open(os.devnull, "w")


def warn(text: str) -> None:
    """Print a line on stderr."""
    print(f"warning: {printable(text)}", file=sys.stderr, flush=True)


def track(items: Iterable[Any], description: str, total: int) -> Iterator[Any]:
    """Show a progress bar on a terminal; into a pipe, print the description once."""
    if not sys.stdout.isatty():
        say(f"{description} ({total:,})")
        yield from items
        return
    from rich.markup import escape
    from rich.progress import track as rich_track

    yield from rich_track(items, escape(printable(description)), total)


def no_track(items: Iterable[Any], description: str, total: int) -> Iterable[Any]:
    """Show no progress."""
    return items


class Progress:
    """A progress bar over the steps of a run, on a terminal only, and the lines above it."""

    def __init__(self, total: int, done: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("{task.description}"), BarColumn(None), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Bar(*columns, transient=True, disable=not sys.stdout.isatty())
        self._task = self._bar.add_task("compiling", total=total, completed=done)

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, step: int, text: str) -> None:
        """Move the bar to `step`."""
        self._bar.update(self._task, completed=step, description=text)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self._bar.disable:
            say(text)
        else:
            self._bar.console.print(printable(text), highlight=False, markup=False, emoji=False)

"""Print lines, warnings, tables and progress to the terminal."""

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

Track = Callable[[Iterable[Any], str, int], Iterable[Any]]
"""Shows progress: takes items, a description and their number, and gives the items."""


def printable(text: str) -> str:
    r"""Escape what is not printable, as \x1b: in a name it could end the line, or control a terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def open_closed_streams() -> None:
    """Let a stream that was closed (`>&-`) be /dev/null: else the next file that is opened would be in its place."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest free number, this one
            setattr(sys, name, open(number, mode, closefd=False))


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
    """Print a warning on stderr."""
    say_on_stderr(f"warning: {text}")


def say_on_stderr(text: str) -> None:
    """Print a line on stderr; if it cannot be written, all else goes on, and ends, as it would."""
    with contextlib.suppress(OSError):
        print(printable(text), file=sys.stderr, flush=True)


def table(rows: list[list[str]], numbers: Collection[str], width: int | None = None) -> str:
    """Columns two blanks apart, those with these titles to the right.

    Columns that would pass `width` go on in a table below, next to the first column again.
    """
    columns = []
    for column in zip(*rows, strict=True):
        cells = [*map(printable, column)]
        widest = max(map(len, cells))
        columns.append([cell.rjust(widest) if cells[0] in numbers else cell.ljust(widest) for cell in cells])
    tables = [columns[:1]]
    for column in columns[1:]:
        used = sum(len(each[0]) + 2 for each in tables[-1])
        if width and used + len(column[0]) > width and len(tables[-1]) > 1:
            tables.append(columns[:1])
        tables[-1].append(column)
    return "\n\n".join("\n".join("  ".join(line).rstrip() for line in zip(*each, strict=True)) for each in tables)


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

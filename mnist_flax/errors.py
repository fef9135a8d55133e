"""The two errors that a command turns into one line: wrong input, and a run that failed.

raise InputError("epochs=0 is out of range; give a whole number from 1 to 1000000")
"""

from pathlib import Path


class InputError(Exception):
    """What the user gave is wrong (exit code 2). Its message is one line: the field, the value, the remedy."""


def wrong(field: str, value: object, problem: str, remedy: str) -> InputError:
    """The error of one field: `workdir='exp1' is in use by another process; give another --workdir`."""
    shown = str(value) if isinstance(value, Path) else value
    return InputError(f"{field}={shown!r} {problem}; {remedy}")


class RunError(Exception):
    """The run failed (exit code 1). Its message is one line: what happened, and what was saved."""


def first_line(error: BaseException) -> str:
    """The first line of a library's error message, at most 200 characters."""
    text = str(error).strip() or type(error).__name__
    full = "No space left on device"  # some libraries bury it in a paragraph
    return full if full in text else text.splitlines()[0][:200]

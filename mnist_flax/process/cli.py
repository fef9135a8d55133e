"""Run a command: parse its arguments, let a signal stop it, and end with one line and an exit code.

    if __name__ == "__main__":
        main(Args, run)

Exit codes: 0 done; 1 the run failed; 2 the input is wrong; 128 + n stopped by signal n, after saving: 129 SIGHUP,
130 SIGINT, 143 SIGTERM.
"""

import contextlib
import gc
import io
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn, TypeVar

import tyro

from mnist_flax.errors import InputError, RunError
from mnist_flax.process import signals
from mnist_flax.process.signals import Stopped, StopSignals
from mnist_flax.process.terminal import printable

Args = TypeVar("Args")


def main(args_type: type[Args], run: Callable[[Args, StopSignals], None]) -> NoReturn:
    """Parse the command line into `args_type`, run, and turn what goes wrong into one line and an exit code."""
    # Imports and tracing make 200,000 objects that stay. Python's default searches them for garbage so often that
    # training starts 0.2 s later.
    gc.set_threshold(100_000)
    if "--traceback" not in sys.argv:
        sys.excepthook = _unexpected
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a class may have a name that the terminal cannot show
    try:
        stop_signals = StopSignals()
        run(_parse(args_type), stop_signals)
    except InputError as error:
        _fail(error, 2)
    except (RunError, OSError) as error:
        _fail(error, 1)
    except Stopped as stop:
        print(printable(str(stop)), file=sys.stderr)
        _leave(stop.exit_code)
    signals.ignore()  # the command has finished
    _leave(0)


def _command() -> str | None:
    """The command line that started this process, such as `python -m mnist_flax.train`; None for other programs."""
    spec = sys.modules["__main__"].__spec__
    if not (spec and spec.name.startswith("mnist_flax.")):
        return None
    return f"python -m {spec.name.removesuffix('.__main__')}"


def _parse(args_type: type[Args]) -> Args:
    """Parse the command line with tyro, and turn its framed error message into one line."""
    if os.environ.get("NO_COLOR"):  # https://no-color.org
        tyro._experimental_options["ansi_codes"] = False
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            return tyro.cli(args_type, prog=_command(), config=(tyro.conf.OmitArgPrefixes,))
    except SystemExit as exit_:
        if not exit_.code:
            raise
        lines = [line.strip("│╰╯ ") for line in message.getvalue().splitlines()]
        title_lines = 1 if lines[0].startswith("╭") else 2  # ASCII frames have a rule below the title
        lines = lines[title_lines:]
        parts = " ".join("\n" if line and not line.strip("─-") else line for line in lines).split("\n")
        text = parts[0].strip().rstrip(".")
        if suggestion := [p for p in parts if "Perhaps you meant" in p]:
            flag = next(word for word in suggestion[0].split() if word.startswith("--"))
            text += f"; did you mean {flag}?"
        raise InputError(f"{text} (--help lists every flag)") from None


def _unexpected(kind: type[BaseException], error: BaseException, _: object) -> None:
    """Print an error that no command expects in one line."""
    text = " ".join(str(error).split())[:300]
    print(f"error: unexpected {kind.__name__}: {printable(text)} (--traceback shows where)", file=sys.stderr)


def _fail(error: object, code: int) -> NoReturn:
    if "--traceback" in sys.argv:
        traceback.print_exc()
    print(f"error: {printable(str(error))}", file=sys.stderr)
    _leave(code)


def _leave(code: int) -> NoReturn:
    if _command():  # not called from another program
        with contextlib.suppress(BrokenPipeError):  # the reader of our output may have ended
            sys.stdout.flush()
        signals.leave(code)
    sys.exit(code)

"""Run a command: parse its arguments, let a signal stop it, and end with one line and an exit code.

    if __name__ == "__main__":
        main(Args, run)

Exit codes: 0 done; 1 the run failed; 2 the input is wrong; 130 and 143 stopped by SIGINT and SIGTERM after saving.
"""

import contextlib
import gc
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn, TypeVar

import tyro

from mnist_flax.errors import InputError, RunError

Args = TypeVar("Args")


class Stopped(Exception):
    """The command stopped because of a signal; the message says what was saved."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}: {message}")
        self.exit_code = 128 + signum


class StopSignals:
    """Handlers of SIGINT and SIGTERM: they end the process, but inside `deferred()` only the second signal does."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._deferring = False
        # Python runs handlers in the main thread only, which may be in a compiled call for minutes. So another thread
        # waits for the second signal: Python writes each signal's number into the pipe at once.
        read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write)
        threading.Thread(target=self._watch, args=(read,), daemon=True).start()
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, self._handle)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Let the block go on until it can save; it looks at `received`, the first signal's number or None."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    def _watch(self, read: int) -> None:
        os.read(read, 1)
        os._exit(128 + os.read(read, 1)[0])

    def _handle(self, signum: int, frame: object) -> None:
        self.received = signum
        if not self._deferring:
            name = signal.Signals(signum).name
            print(f"stopped by {name} when there was nothing to save", file=sys.stderr, flush=True)
            os._exit(128 + signum)  # an exception could get lost in an import or a compilation


def main(args_type: type[Args], run: Callable[[Args, StopSignals], None]) -> NoReturn:
    """Parse the command line into `args_type`, run, and turn what goes wrong into one line and an exit code."""
    # Imports and tracing make 200,000 objects that stay. Python's default searches them for garbage so often that
    # training starts 0.2 s later.
    gc.set_threshold(100_000)
    if "--traceback" not in sys.argv:
        sys.excepthook = _unexpected
    try:
        signals = StopSignals()
        run(_parse(args_type), signals)
    except InputError as error:
        _fail(error, 2)
    except (RunError, OSError) as error:
        _fail(error, 1)
    except Stopped as stop:
        print(stop, file=sys.stderr)
        _leave(stop.exit_code)
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)  # the command has finished
    _leave(0)


def _command() -> str | None:
    """The command line that started this process, such as `python -m mnist_flax.train`; None for other programs."""
    spec = sys.modules["__main__"].__spec__
    if not (spec and spec.name.startswith("mnist_flax.")):
        return None
    return f"python -m {spec.name.removesuffix('.__main__')}"


def _parse(args_type: type[Args]) -> Args:
    """Parse the command line with tyro, and turn its framed error message into one line."""
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
    print(f"error: unexpected {kind.__name__}: {text} (--traceback shows where)", file=sys.stderr)


def _fail(error: object, code: int) -> NoReturn:
    if "--traceback" in sys.argv:
        traceback.print_exc()
    print(f"error: {error}", file=sys.stderr)
    _leave(code)


def _leave(code: int) -> NoReturn:
    if _command():  # not called from another program
        with contextlib.suppress(BrokenPipeError):  # the reader of our output may have ended
            sys.stdout.flush()
        os._exit(code)  # at once: threads of JAX and orbax can wait minutes for what is gone
    sys.exit(code)

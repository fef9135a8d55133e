"""Let a signal stop a command: at once while there is nothing to save, and otherwise when it has saved.

    signals = StopSignals()
    with signals.deferred():
        ...  # look at `signals.received` now and then; save, and raise `Stopped`

SIGHUP comes when the terminal is closed; a command that `nohup` started does not take notice.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import NoReturn

from mnist_flax.process import files

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(Exception):
    """The command stopped because of a signal; the message says what was saved."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}: {message}")
        self.exit_code = 128 + signum


class StopSignals:
    """Handlers of the signals that stop: they end the process, but inside `deferred()` only the second one does."""

    def __init__(self) -> None:
        self.received: int | None = None  # the first one
        self._deferring = False
        self._terminals = [fd for fd in (1, 2) if os.isatty(fd)]
        # Python runs handlers in the main thread only, which may be in a compiled call for minutes. So another thread
        # waits for the second signal: Python writes each signal's number into the pipe at once.
        read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write)
        threading.Thread(target=self._watch, args=(read,), daemon=True).start()
        _install(self._handle)

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
        while (second := os.read(read, 1)[0]) == signal.SIGHUP:
            pass  # of one terminal it comes twice: from the shell and from the kernel
        leave(128 + second)

    def _handle(self, signum: int, frame: object) -> None:
        self.received = self.received or signum
        if signum == signal.SIGHUP:  # printing to a terminal that is gone would fail
            for fd in self._terminals:
                os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
        if not self._deferring:
            _end(signum, frame)


class Interrupts:
    """As `StopSignals`, for `fit` in somebody's program: of Ctrl-C alone, and only inside `deferred()`.

    There the first one lets the block go on until it has saved; the second raises `KeyboardInterrupt` at once.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Let the block go on until it can save; only the main thread gets signals, and may handle them."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, self._handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _handle(self, signum: int, _: object) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = signum


def end_at_once() -> None:
    """Let any of the signals end the process with one line, until there are `StopSignals`."""
    _install(_end)


def ignore() -> None:
    """Take no notice of them any more."""
    _install(signal.SIG_IGN)


def leave(code: int) -> NoReturn:
    """End the process now, whatever its threads wait for: those of JAX and orbax can wait for minutes."""
    files.remove_temporary()
    if os.isatty(1):
        os.write(1, b"\x1b[?25h")  # shows the cursor, which a progress bar hides
    os._exit(code)


def _install(handler: object) -> None:
    for signum in STOPPING:
        if not (signum == signal.SIGHUP and signal.getsignal(signum) == signal.SIG_IGN):  # by nohup
            signal.signal(signum, handler)  # type: ignore[arg-type]


def _end(signum: int, _: object) -> NoReturn:
    with contextlib.suppress(OSError):
        os.write(2, f"stopped by {signal.Signals(signum).name} when there was nothing to save\n".encode())
    leave(128 + signum)  # an exception could get lost in an import or a compilation

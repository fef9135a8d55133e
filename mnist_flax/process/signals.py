"""Signals that ask a command to stop.

signals = StopSignals()
with signals.deferred():
    ...  # look at `signals.received`, save, and raise Stopped
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator


class Stopped(Exception):
    """A signal asked to stop; the message says what was saved."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}: {message}")
        self.exit_code = 128 + signum


class StopSignals:
    """SIGINT and SIGTERM: end the process; are noted in `received` inside `deferred()`, where a second one ends it."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._deferring = False
        # Python runs handlers between two bytecodes of the main thread only, and that may sit in a compiled call for
        # minutes. The bytes of the wakeup file come at once, and another thread reads them.
        read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write)
        threading.Thread(target=self._watch, args=(read,), daemon=True).start()
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, self._handle)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Let the block reach a point where it can save and look at `received`."""
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
        if not self._deferring:  # not by an exception: in the middle of an import or a compilation it would get lost
            print(
                f"stopped by {signal.Signals(signum).name} when there was nothing to save", file=sys.stderr, flush=True
            )
            os._exit(128 + signum)

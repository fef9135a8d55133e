"""Run one case of `random_input` as its command would, in this process, and judge how it ends.

What would compile, use the network, start a process or end this one is replaced, so that thousands of cases take an
hour.
"""

import contextlib
import io
import os
import re
import resource
import signal
import sys
import traceback
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn
from unittest import mock

import numpy as np
from random_input_cases import Case

from mnist_flax import inference
from mnist_flax.data import datasets
from mnist_flax.monitor import writer_process
from mnist_flax.process import cli, signals
from mnist_flax.sweep import __main__ as sweep
from mnist_flax.sweep import directory
from mnist_flax.train import __main__ as train
from mnist_flax.train import run as training
from mnist_flax.workdir import claim

SECONDS, MEMORY = 10, 2**30  # of one case, on the processor; bytes more than the process has ever taken before
PATIENCE = 6 * SECONDS  # of the clock: the machine may have other work


class Accepted(BaseException):
    """The input was accepted; what follows is left out."""


class Hangs(BaseException):
    """There is no end within SECONDS, or PATIENCE."""


def accept(*_: object, **__: object) -> NoReturn:
    """Stand in the place of what comes after an accepted input."""
    raise Accepted


def hang(*_: object) -> NoReturn:
    """Handle the alarm."""
    raise Hangs


def limit() -> None:
    """Let an endless loop, a huge array or a huge file be an error instead of the end of the machine."""
    signal.signal(signal.SIGALRM, hang)
    signal.signal(signal.SIGPROF, hang)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + 12 * 2**30, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**30, resource.RLIM_INFINITY))


def stand_ins(kind: str) -> contextlib.ExitStack:
    """Replace what a case must not reach, while the stack is open."""
    stack, mnist = contextlib.ExitStack(), datasets.open_dataset("mnist", datasets.default_data_dir())
    quiet = SimpleNamespace(received=None, deferred=contextlib.nullcontext)
    places: list[tuple[Any, str, Any]] = [
        (cli, "StopSignals", lambda: quiet), (signals, "ignore", lambda: None), (os, "_exit", accept),
        (os, "nice", lambda _: 0), (writer_process, "curves", mock.MagicMock()), (sweep, "_work", accept),
        (train, "AsyncWriter", mock.MagicMock()), (training, "RunDriver", accept), (inference, "find_dataset", accept),
        (inference, "logits_of", lambda *_: np.eye(1, 10)),
        (urllib.request, "urlopen", mock.Mock(side_effect=OSError("there is no network"))),
    ]  # fmt: skip
    if kind in ("pictures", "command lines"):
        places += [(inference, "load_network", lambda *_: (8, None, None)), (claim, "claim", accept)]
    if kind in ("experiment files", "command lines"):
        places += [(directory, "create", accept)]
    if kind not in ("datasets and decoded copies", "IDX files"):
        places += [(datasets, "open_dataset", lambda *_, **__: mnist)]
    for place, name, stand_in in places:
        stack.enter_context(mock.patch.object(place, name, stand_in))
    return stack


class Caught(contextlib.AbstractContextManager["Caught"]):
    """Keep the error that ends the block, unless it is the user's Ctrl-C."""

    error: BaseException | None = None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        """Let the program go on after the block."""
        self.error = error
        return not isinstance(error, KeyboardInterrupt)


def snapshot(root: Path) -> dict[str, tuple[int, int, int]]:
    """Mode, size and time of every file below a directory; of directories the mode."""
    found = {}
    for path in root.rglob("*"):
        status = path.lstat()
        changes = (0, 0) if path.is_dir() and not path.is_symlink() else (status.st_size, status.st_mtime_ns)
        found[str(path.relative_to(root))] = (status.st_mode, *changes)
    return found


def run(case: Case) -> tuple[int, str, str]:
    """Run a command with its arguments; its exit code, and what it has printed on stdout and stderr."""
    command, args, _ = case
    out, err, code = io.StringIO(), io.StringIO(), 0
    sys.argv = ["command", *map(str, args)]
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if isinstance(command, bytes):
                with mock.patch.object(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(command))):
                    writer_process.main()  # ends by `os._exit`, so by `Accepted`
            else:
                cli.main(command.Args, command.run)
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else 0
        except Accepted:
            code = 0
        except Exception as error:
            if not isinstance(command, bytes):
                raise
            code = 1
            writer_process._failed(type(error), error, None)  # which it has made Python's own handler
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.setitimer(signal.ITIMER_PROF, 0)
            sys.excepthook = sys.__excepthook__
    return code, out.getvalue(), err.getvalue().encode(errors="replace").decode()


def outcome(case: Case, root: Path) -> tuple[str, str]:
    """`used`, `refused` or what is wrong; and the last line on stderr."""
    before, memory = snapshot(root), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code, out, err = 0, "", ""
    with Caught() as caught:
        code, out, err = run(case)
    if error := caught.error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "mnist_flax/" in frame.filename]
        where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
        return f"{type(error).__name__} in {where}", f"{error}"[:300]
    after, lines = snapshot(root), err.splitlines() or [""]
    written = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    if stray := [name for name in written if not re.fullmatch(case[2], name)]:
        return f"wrote {', '.join(stray)[:100]}", lines[-1]
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory > MEMORY // 1024:
        return "took much memory", lines[-1]
    last = "warning: " if isinstance(case[0], bytes) else "error: "
    *warnings, end = lines if code else [*filter(None, lines), ""]
    good = all(line.startswith("warning: ") for line in warnings) and end.startswith(last if code else "")
    if good and code in (0, 1, 2) and all(line.isprintable() for line in [*lines, *out.splitlines()]):
        return "refused" if code else "used", lines[-1]
    return f"exit code {code}, not in one printable line", f"{err[-300:]!r} {out[:99]!r}"

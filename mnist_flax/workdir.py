"""A run's directory: who may use it.

check(workdir, config)     # before anything is written
with claim(workdir, run):  # one process at a time
    ...
"""

import contextlib
import fcntl
import os
import shutil
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from mnist_flax import record
from mnist_flax.config import Config, InputError, RunError, flat
from mnist_flax.writer import scratch_of

_LOCK, _SAVED = ".lock", ".saved"


def checkpoints(workdir: Path) -> Path:
    """Where its checkpoints are."""
    return workdir / "checkpoints"


def metrics_file(workdir: Path) -> Path:
    """Where its metrics are."""
    return workdir / "metrics.jsonl"


def check(workdir: Path, config: Config) -> None:
    """Refuse a directory that is not ours, or that is another run's.

    Raises:
      InputError: with the fields that differ.
    """
    try:
        is_run, entries = (
            (workdir / record.CONFIG).exists(),
            {e.name for e in workdir.iterdir()} if workdir.exists() else set(),
        )
    except OSError as error:
        raise InputError(
            f"workdir={str(workdir)!r} cannot be used ({error.strerror}); give another --workdir"
        ) from None
    if is_run:
        theirs, ours = flat(record.read(workdir).config), flat(config)
        differing = [f"{name}={ours[name]!r} (there {theirs[name]!r})" for name in ours if ours[name] != theirs[name]]
        if differing:
            raise InputError(
                f"workdir={str(workdir)!r} is a run with other settings: {', '.join(differing)}; "
                "give the same settings or another --workdir"
            )
    elif entries - {
        _LOCK,
        scratch_of(workdir / record.CONFIG).name,
    }:  # what a kill before the first write leaves is ours
        raise InputError(
            f"workdir={str(workdir)!r} exists and is no run (it has no {record.CONFIG}); give another --workdir"
        )


class InUse(InputError):
    """Another process holds a directory."""


@contextlib.contextmanager
def claim(workdir: Path, run: record.Run) -> Iterator[record.Run]:
    """Hold a directory for this process alone; create it and its `config.json` where they are missing.

    The kernel drops the lock when its holder dies, so a killed process blocks nobody.

    Yields:
      The run as it was first recorded.

    Raises:
      InputError: another process holds it (host, pid, since when), it is another run's, or it cannot be written.
    """
    is_new = not workdir.exists()
    with contextlib.ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(workdir / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            lock = stack.enter_context(os.fdopen(descriptor, "r+"))
            _lock(lock, workdir)
            check(workdir, run.config)
            if not (workdir / record.CONFIG).exists():
                record.write(workdir, run)
        except OSError as error:
            if is_new and not (workdir / record.CONFIG).exists():  # only what we made: another may have begun here
                with contextlib.suppress(OSError):
                    scratch_of(workdir / record.CONFIG).unlink(missing_ok=True)
                    (workdir / _LOCK).unlink(missing_ok=True)
                    workdir.rmdir()
            raise InputError(
                f"workdir={str(workdir)!r} cannot be written ({error.strerror}); give another --workdir"
            ) from None
        recorded = record.read(workdir)
        differing = [name for name, value in run.data.items() if name != "data_dir" and value != recorded.data[name]]
        if differing:
            raise InputError(
                f"data_dir={run.data['data_dir']!r} holds other data than the run began with ({', '.join(differing)}); "
                "give its --data-dir, or another --workdir"
            )
        yield recorded


def is_held(workdir: Path) -> bool:
    """Whether a process holds a directory now."""
    try:
        with open(workdir / _LOCK) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def mark_saved(workdir: Path) -> None:
    """Remember that a checkpoint was saved once, so that their absence is never taken for a fresh start."""
    (workdir / _SAVED).touch()


def was_saved(workdir: Path) -> bool:
    """Whether a checkpoint was ever saved."""
    return (workdir / _SAVED).exists()


def check_still_there(workdir: Path) -> None:
    """Notice that a directory has been removed, even where a save in flight has made a new one of its name.

    Raises:
      RunError: `config.json` is gone. What that one save has made is removed; anything more is left alone.
    """
    if (workdir / record.CONFIG).exists():
        return
    rest = {entry.name for entry in workdir.iterdir()} if workdir.exists() else set()
    if rest <= {"checkpoints"} and (not rest or len(list(checkpoints(workdir).iterdir())) <= 1):
        shutil.rmtree(workdir, ignore_errors=True)
        raise RunError(f"workdir={str(workdir)!r} has vanished while it was in use, and what was saved with it")
    raise RunError(f"{workdir / record.CONFIG} has vanished while it was in use; restore it, the checkpoints are there")


def _lock(lock: IO[str], workdir: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "another process"
        text = f"workdir={str(workdir)!r} is in use by {holder}; wait for it or give another --workdir"
        raise InUse(text) from None
    lock.seek(0)
    lock.truncate()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    lock.write(f"pid {os.getpid()} on host {socket.gethostname()} since {now}\n")
    lock.flush()

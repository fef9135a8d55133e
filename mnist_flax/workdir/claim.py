"""Claim a run's directory, so that one process at a time uses it, and check that it holds this run.

with claim(workdir, run_info) as recorded:
    ...
"""

import contextlib
import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from mnist_flax.config import Config, flatten, to_json
from mnist_flax.errors import InputError, RunError, wrong
from mnist_flax.process import files
from mnist_flax.workdir import run_info
from mnist_flax.workdir.run_info import CONFIG, RunInfo

_LOCK, _SAVED, _DIVERGED, _ANOTHER = ".lock", ".saved", ".diverged", "give another --workdir"
CARD = "README.md"
_WRITTEN = (CONFIG, "metrics.jsonl", "evaluation.json", CARD, _LOCK, _SAVED, _DIVERGED)
_WRITTEN += ("lineage.jsonl", "checkpoints", "figures", "tensorboard", "checkpoints/*", "tensorboard/*")
_LEFTOVERS = {_LOCK, files.scratch_of(Path(CONFIG)).name, f".{CONFIG}.tmp"}  # of a kill before the first write


def checkpoints_dir(workdir: Path) -> Path:
    """Where a run's checkpoints are."""
    return workdir / "checkpoints"


def metrics_file(workdir: Path) -> Path:
    """Where a run's metrics are."""
    return workdir / "metrics.jsonl"


def is_run(workdir: Path) -> bool:
    """Whether a directory is a run's."""
    return (workdir / CONFIG).exists()


def check(workdir: Path, config: Config) -> None:
    """Raise `InputError` if a directory is not a run's, or is a run's with other settings (the error lists them).

    More epochs are right where the learning rate does not depend on their number: the run goes on.
    """
    try:
        os.fspath(workdir).encode()
    except UnicodeEncodeError:
        raise wrong("workdir", workdir, "is not a name in UTF-8, as checkpoints need", _ANOTHER) from None
    try:
        found = is_run(workdir)
        entries = {entry.name for entry in workdir.iterdir()} if workdir.exists() else set()
    except OSError as error:
        raise wrong("workdir", workdir, f"cannot be used ({error.strerror})", _ANOTHER) from None
    check_entries(workdir)
    if found:
        _check_settings(workdir, run_info.read(workdir).config, config)
    elif entries - _LEFTOVERS:
        raise wrong("workdir", workdir, f"exists and is not a run (it has no {CONFIG})", _ANOTHER)


def _check_settings(workdir: Path, there: Config, config: Config) -> None:
    theirs, ours = flatten(there), flatten(config)
    names = [name for name in ours if ours[name] != theirs[name]]
    if not names or (names == ["epochs"] and run_info.has_grown(to_json(there), to_json(config))):
        return
    problem = "is a run with other settings: " + ", ".join(f"{n}={ours[n]!r} (there {theirs[n]!r})" for n in names)
    remedy = "give the same settings or another --workdir"
    if names == ["epochs"] and config.epochs > there.epochs:
        problem += f"; with schedule={config.schedule!r} its learning rate depends on the number of epochs"
    raise wrong("workdir", workdir, problem, remedy)


def check_entries(workdir: Path) -> None:
    """Raise `InputError` if a link, a pipe or a device stands where a command writes in a run's directory."""
    files.check_entries(workdir, _WRITTEN)


class InUse(InputError):
    """Another process has claimed the directory."""


@contextlib.contextmanager
def claim(workdir: Path, run: RunInfo) -> Iterator[RunInfo]:
    """Lock a directory for this process, and give the run that its `config.json` records; create what is missing.

    The kernel releases the lock of a process that dies. Raises `InUse` if another process has the lock (the error says
    which, on which host, since when), and `InputError` if the directory is another run's or cannot be written. Where
    `run` has more epochs, `config.json` has them from now on.
    """
    is_new = not workdir.exists()
    with contextlib.ExitStack() as stack:
        try:
            files.make_directory(workdir)
            note = stack.enter_context(files.lock(workdir / _LOCK, wait=False))
            note.truncate()
            now = datetime.now(UTC).isoformat(timespec="seconds")
            note.write(f"pid {os.getpid()} on host {socket.gethostname()} since {now}\n")
            note.flush()
            check(workdir, run.config)
            if not (workdir / CONFIG).exists():
                run_info.write(workdir, run)
        except BlockingIOError:
            holder = "another process"
            with contextlib.suppress(OSError, ValueError):
                holder = files.read_text(workdir / _LOCK).strip()[:200] or holder
            text = f"workdir={str(workdir)!r} is in use by {holder}; wait for it or give another --workdir"
            raise InUse(text) from None
        except OSError as error:
            if is_new and not (workdir / CONFIG).exists():  # else it is not ours to remove
                with contextlib.suppress(OSError):
                    (workdir / _LOCK).unlink(missing_ok=True)
                    workdir.rmdir()
            raise wrong("workdir", workdir, f"cannot be written ({error.strerror})", _ANOTHER) from None
        recorded = run_info.read(workdir)
        differing = [name for name, value in run.data.items() if name != "data_dir" and value != recorded.data[name]]
        if differing:
            problem = f"holds other data than the run began with ({', '.join(differing)})"
            raise wrong("data_dir", run.data["data_dir"], problem, "give its --data-dir, or another --workdir")
        (workdir / _DIVERGED).unlink(missing_ok=True)
        if recorded.config != run.config:
            (workdir / CARD).unlink(missing_ok=True)  # it tells of fewer epochs
            run_info.write(workdir, recorded := replace(recorded, config=run.config))
        yield recorded


def is_held(workdir: Path) -> bool:
    """Whether a process has claimed a directory now."""
    return files.is_locked(workdir / _LOCK)


def mark_saved(workdir: Path) -> None:
    """Mark that a checkpoint was saved: if there are none later, the run does not start again from scratch."""
    (workdir / _SAVED).touch()


def mark_diverged(workdir: Path) -> None:
    """Mark that a run has diverged, until it is started again."""
    (workdir / _DIVERGED).touch()


def has_diverged(workdir: Path) -> bool:
    """Whether a run ended because it diverged."""
    return (workdir / _DIVERGED).exists()


def was_saved(workdir: Path) -> bool:
    """Whether a checkpoint was ever saved here."""
    return (workdir / _SAVED).exists()


def check_still_there(workdir: Path) -> None:
    """Raise `RunError` if a directory has been removed, even if the last save has created it again.

    Then it holds only that save, and is removed; anything more is left alone.
    """
    if (workdir / CONFIG).exists():
        return
    rest = {entry.name for entry in workdir.iterdir()} if workdir.exists() else set()
    if rest <= {"checkpoints"} and (not rest or len(list(checkpoints_dir(workdir).iterdir())) <= 1):
        shutil.rmtree(workdir, ignore_errors=True)
        raise RunError(f"workdir={str(workdir)!r} has vanished while it was in use, and what was saved with it")
    raise RunError(f"{workdir / CONFIG} has vanished while it was in use; restore it, the checkpoints are there")

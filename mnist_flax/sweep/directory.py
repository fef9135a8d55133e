"""A sweep's directory: `sweep.json` says which sweep it is; every process of the sweep may use it at once."""

import contextlib
import json
import re
from pathlib import Path
from typing import Any

from mnist_flax.errors import wrong
from mnist_flax.process import files

_SWEEP, _LOCK, _ANOTHER = "sweep.json", ".sweep.lock", "give another --workdir"
_WRITTEN = (_SWEEP, _LOCK, "optuna.journal", "worker-*.log", "members", "final", "figures", "tensorboard")
_WRITTEN += ("members/*", "final/*", "tensorboard/*")


def check(directory: Path, identity: dict[str, Any]) -> None:
    """Raise `InputError` unless a directory is new, empty, or that of a sweep with this `identity` (JSON values)."""
    if directory.exists() and not directory.is_dir():
        raise wrong("workdir", directory, "is not a directory", _ANOTHER)
    if link := files.find_link(directory, _WRITTEN):
        raise wrong("workdir", directory, f"has a symbolic link, {link.name}", "put what it points to in its place")
    ours = {_LOCK, files.scratch_of(directory / _SWEEP).name, f".{_SWEEP}.tmp"}
    if not directory.exists() or not {entry.name for entry in directory.iterdir()} - ours:
        return
    try:
        recorded = json.loads((directory / _SWEEP).read_text())
        differing = [name for name, value in identity.items() if recorded.get(name) != value]
    except (OSError, ValueError, AttributeError):
        raise wrong("workdir", directory, f"is not a sweep (it has no valid {_SWEEP})", _ANOTHER) from None
    if differing:
        problem = f"is a sweep with another {', '.join(differing)}"
        raise wrong("workdir", directory, problem, "give the same as before, or another --workdir")


def create(directory: Path, identity: dict[str, Any]) -> None:
    """Create a sweep's directory, or find it; raises `InputError` if it is another's, or cannot be written."""
    is_new = not directory.exists()
    try:
        files.make_directory(directory)
        with locked(directory):
            check(directory, identity)  # again: another process may have created a sweep here since
            if not (directory / _SWEEP).exists():
                files.write_text(directory / _SWEEP, json.dumps(identity, indent=2) + "\n")
    except OSError as error:
        if is_new:
            with contextlib.suppress(OSError):
                (directory / _LOCK).unlink(missing_ok=True)
                directory.rmdir()
        raise wrong("workdir", directory, f"cannot be written ({error.strerror})", _ANOTHER) from None


def locked(directory: Path) -> contextlib.AbstractContextManager[Any]:
    """Hold the directory's lock; wait while another process holds it."""
    return files.lock(directory / _LOCK)


def without_password(url: str) -> str:
    """A database's URL with `***` for its password, to show and to store."""
    return re.sub("(//[^:/@]*):[^@]*@", r"\1:***@", url)

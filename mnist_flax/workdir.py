"""A run's directory: who may use it, and `config.json`, which says what it is.

check(workdir, config)                    # before anything is written
with claim(workdir, run):                 # one process at a time
    ...
run = read_run(workdir)                   # all that evaluation needs to know
"""

import contextlib
import fcntl
import importlib.metadata
import json
import os
import platform
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from mnist_flax.config import Config, InputError, RunError, flat, from_json, to_json
from mnist_flax.writer import write_text

_CONFIG, _LOCK = "config.json", ".lock"


@dataclass(frozen=True)
class Run:
    """What `config.json` holds."""

    config: Config
    data: dict[str, Any]
    """image_shape, class_names, train_examples, eval_examples, data_dir (absolute)."""
    versions: dict[str, str]


def versions() -> dict[str, str]:
    """Python and the libraries whose versions can change a result's last digits."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


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
    if (workdir / _CONFIG).exists():
        theirs, ours = flat(read_run(workdir).config), flat(config)
        differing = [f"{name}={ours[name]!r} (there {theirs[name]!r})" for name in ours if ours[name] != theirs[name]]
        if differing:
            raise InputError(
                f"workdir={str(workdir)!r} is a run with other settings: {', '.join(differing)}; "
                "give the same settings or another --workdir"
            )
    elif workdir.exists() and (not workdir.is_dir() or any(e.name != _LOCK for e in workdir.iterdir())):
        raise InputError(f"workdir={str(workdir)!r} exists and is no run (it has no {_CONFIG}); give another --workdir")


@contextlib.contextmanager
def claim(workdir: Path, run: Run) -> Iterator[Run]:
    """Hold a directory for this process alone; create it and its `config.json` where they are missing.

    The kernel drops the lock when its holder dies, so a killed process blocks nobody.

    Yields:
      The run as it was first recorded.

    Raises:
      InputError: another process holds it (host, pid, since when), it is another run's, or it cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = open(workdir / _LOCK, "a+")
    except OSError as error:
        raise InputError(
            f"workdir={str(workdir)!r} cannot be written ({error.strerror}); give another --workdir"
        ) from None
    with lock:
        _lock(lock, workdir)
        check(workdir, run.config)
        if not (workdir / _CONFIG).exists():
            tree = {"config": to_json(run.config), "data": run.data, "versions": run.versions}
            try:
                write_text(workdir / _CONFIG, json.dumps(tree, indent=2) + "\n")
            except OSError as error:
                raise InputError(
                    f"workdir={str(workdir)!r} cannot be written ({error.strerror}); give another"
                ) from None
        yield read_run(workdir)


def check_still_there(workdir: Path) -> None:
    """Notice that a directory has been removed, even where a save in flight has made a new one of its name.

    Raises:
      RunError: `config.json` is gone.
    """
    if not (workdir / _CONFIG).exists():
        raise RunError(f"workdir={str(workdir)!r} has vanished while it was in use, and what was saved with it")


@contextlib.contextmanager
def is_free(workdir: Path) -> Iterator[bool]:
    """Whether nobody holds a run's directory; while the block runs, nobody else can."""
    try:
        lock = open(workdir / _LOCK, "r+")
    except OSError:  # read-only, or a copy without its lock
        yield False
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def read_run(workdir: Path) -> Run:
    """Read `config.json` as strictly as a command line: nothing in it is run, and no path in it is written to.

    Raises:
      InputError: the directory or the file is missing, or a field of it is missing, unknown or wrong.
    """
    path = workdir / _CONFIG
    try:
        tree = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"workdir={str(workdir)!r} is no run (it has no {_CONFIG}); give the --workdir of a run"
        ) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give another --workdir") from None
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); restore it or choose another --workdir") from None
    parts = {"config", "data", "versions"}
    if not isinstance(tree, dict) or tree.keys() != parts:
        found = ", ".join(sorted(tree)) if isinstance(tree, dict) else type(tree).__name__
        raise InputError(
            f"{path} must hold {', '.join(sorted(parts))}, not {found}; restore it or choose another --workdir"
        )
    config = from_json(tree["config"], f"{path}: config")
    for name, ok in _sound(tree["data"], tree["versions"]).items():
        if not ok:
            raise InputError(f"{path}: {name} is missing, unknown or wrong; restore it or choose another --workdir")
    return Run(config, tree["data"], tree["versions"])


def _sound(data: Any, versions: Any) -> dict[str, bool]:
    """Which parts of `config.json` besides the config are as they must be."""
    fields = {"image_shape", "class_names", "train_examples", "eval_examples", "data_dir"}
    if not isinstance(data, dict) or data.keys() != fields:
        return {"data": False}

    def counts(values: Any) -> bool:
        return isinstance(values, list) and all(type(v) is int and 0 < v < 2**31 for v in values)

    def texts(values: Any) -> bool:
        return all(isinstance(v, str) for v in values)

    path = data["data_dir"]
    return {
        "image_shape": counts(data["image_shape"]) and len(data["image_shape"]) == 3,
        "class_names": isinstance(data["class_names"], list)
        and bool(data["class_names"])
        and texts(data["class_names"]),
        "train_examples": counts([data["train_examples"]]),
        "eval_examples": counts([data["eval_examples"]]),
        "data_dir": isinstance(path, str) and os.path.isabs(path) and ".." not in Path(path).parts and "\0" not in path,
        "versions": isinstance(versions, dict) and texts([*versions, *versions.values()]),
    }


def _lock(lock: IO[str], workdir: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "another process"
        raise InputError(
            f"workdir={str(workdir)!r} is in use by {holder}; wait for it or give another --workdir"
        ) from None
    lock.truncate(0)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    lock.write(f"pid {os.getpid()} on host {socket.gethostname()} since {now}\n")
    lock.flush()

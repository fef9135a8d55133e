"""A sweep's directory: `sweep.json` says which sweep it is; every process of the sweep may use it at once."""

import contextlib
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from mnist_flax.config import to_json
from mnist_flax.errors import wrong
from mnist_flax.process import files
from mnist_flax.sweep import adapt
from mnist_flax.sweep.experiment import DEFAULT_KEEP, Experiment, overrides_key, to_plain
from mnist_flax.workdir.run_info import has_grown
from mnist_flax.workdir.sweep_results import FINISHED, SWEEP

_LOCK, _ANOTHER = ".sweep.lock", "give another --workdir"
_EARLIER = "earlier_epochs"  # in sweep.json
_LATER = {
    "keep": DEFAULT_KEEP,
    "adapt": None,
    "members": None,
}  # what the first sweeps lack; not written while it holds
NOTE = "population.json"  # which step of a population was saved
_MOST = 8  # settings in one error
_WRITTEN = (SWEEP, _LOCK, NOTE, "optuna.journal", "worker-*.log", "members", "final", "figures", "tensorboard")
_WRITTEN += ("members/*", "final/*", "tensorboard/*")


def identity(experiment: Experiment, database: str | None) -> dict[str, Any]:
    """What every command on one sweep must agree in, in JSON values."""
    later = {"keep": experiment.keep, "adapt": experiment.adapt and adapt.to_json(experiment.adapt)}
    later["members"] = _population(experiment) if isinstance(experiment.adapt, adapt.PopulationBased) else None
    return {
        "experiment": experiment.path.name,
        "base": to_json(experiment.base),
        "final": to_plain(experiment.final),
        "search": hashlib.sha256(experiment.source().encode()).hexdigest(),
        "storage": without_password(database) if database else "journal",
    } | {name: value for name, value in later.items() if value != _LATER[name]}


def _population(experiment: Experiment) -> str:
    """Which members a population has: how many, and a hash of them."""
    keys = [overrides_key(each) for each in experiment.grid]
    return (
        f"{len(keys)} ({hashlib.sha256(json.dumps(keys).encode()).hexdigest()[:8]})" if keys else f"{experiment.trials}"
    )


def study_names(identity: dict[str, Any], earlier: list[int], stage: str) -> list[str]:
    """The name of a stage's study for each number of epochs that BASE has had; the last one is today's."""
    names = []
    for epochs in (*earlier, identity["base"]["epochs"]):
        tree = identity | {"base": identity["base"] | {"epochs": epochs}, "storage": None}
        key = hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:12]
        names.append(f"{Path(identity['experiment']).stem}, {stage}, {key}")
    return names


def check(directory: Path, identity: dict[str, Any]) -> list[int]:
    """Raise `InputError` unless a directory is new, empty, or that of a sweep with this `identity` (JSON values).

    More epochs in BASE are right where the learning rate does not depend on their number: the sweep goes on. Returns
    the smaller numbers of epochs that BASE has had before, in order.
    """
    if directory.exists() and not directory.is_dir():
        raise wrong("workdir", directory, "is not a directory", _ANOTHER)
    files.check_entries(directory, _WRITTEN)
    ours = {_LOCK, files.scratch_of(directory / SWEEP).name, f".{SWEEP}.tmp"}
    if not directory.exists() or not {entry.name for entry in directory.iterdir()} - ours:
        return []
    try:
        tree = _LATER | files.read_json(directory / SWEEP)
        earlier, recorded = [*map(int, tree.get(_EARLIER, []))], {name: tree.get(name) for name in _LATER | identity}
        there, here = _fields(recorded), _fields(_LATER | identity)
    except (OSError, ValueError, AttributeError, TypeError):
        raise wrong("workdir", directory, f"is not a sweep (it has no valid {SWEEP})", _ANOTHER) from None
    names = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    if names == ["BASE.epochs"] and "adapt" not in identity and has_grown(recorded["base"], identity["base"]):
        return [*earlier, there["BASE.epochs"]]
    if names:
        problem = "is a sweep with other settings: "
        problem += ", ".join(f"{n}={_shown(here, n)} (there {_shown(there, n)})" for n in names[:_MOST])
        problem += f", and {len(names) - _MOST} more" if len(names) > _MOST else ""
        if names == ["BASE.epochs"] and "adapt" in identity:
            problem += "; with ADAPT the decisions depend on the number of epochs"
        elif names == ["BASE.epochs"] and here["BASE.schedule"] != "constant":
            problem += f"; with schedule={here['BASE.schedule']!r} the learning rate depends on the number of epochs"
        if "MEMBERS" in names:
            problem += "; a population cannot change once it has begun"
        if "KEEP" in names:
            problem += "; networks that were not kept cannot come back"
        raise wrong("workdir", directory, problem, "give the same as before, or another --workdir")
    return earlier


def _fields(identity: dict[str, Any]) -> dict[str, Any]:
    """Every value of an identity by the name that the experiment file has for it, such as `BASE.epochs`."""
    found: dict[str, Any] = {}
    for part, value in identity.items():
        if part == "search":
            found["sha256 of search()"] = value and value[:12]
        elif isinstance(value, dict):
            values = value.get("hparams", {}) | {name: each for name, each in value.items() if name != "hparams"}
            found |= {f"{part.upper()}.{name}": each for name, each in values.items()}
        else:
            found[part.upper() if part in _LATER else part] = value
    return found


def _shown(fields: dict[str, Any], name: str) -> str:
    return f"{fields[name]!r:.60}" if name in fields else "unset"


def create(directory: Path, identity: dict[str, Any]) -> None:
    """Create a sweep's directory, or find it; raises `InputError` if it is another's, or cannot be written."""
    is_new = not directory.exists()
    try:
        files.make_directory(directory)
        with locked(directory):
            earlier = check(directory, identity)  # again: another process may have created a sweep here since
            tree = identity | ({_EARLIER: earlier} if earlier else {})
            if not (directory / SWEEP).exists() or files.read_json(directory / SWEEP) != tree:
                files.write_text(directory / SWEEP, json.dumps(tree, indent=2) + "\n")
    except OSError as error:
        if is_new:
            with contextlib.suppress(OSError):
                (directory / _LOCK).unlink(missing_ok=True)
                directory.rmdir()
        raise wrong("workdir", directory, f"cannot be written ({error.strerror})", _ANOTHER) from None


def mark_finished(directory: Path, results: int) -> None:
    """Note that every member is done, and how many results there are; `create` removes the note."""
    with locked(directory):
        tree = files.read_json(directory / SWEEP)
        files.write_text(directory / SWEEP, json.dumps(tree | {FINISHED: results}, indent=2) + "\n")


def locked(directory: Path) -> contextlib.AbstractContextManager[Any]:
    """Hold the directory's lock; wait while another process holds it."""
    return files.lock(directory / _LOCK)


def without_password(url: str) -> str:
    """A database's URL with `***` for its password, to show and to store."""
    shown = re.sub("(//[^:/]*):[^?]*@", r"\1:***@", url)  # either may hold an @
    return re.sub(r"([?&][^=&]*(?:passw|secret|token|pwd)[^=&]*)=[^&]*", r"\1=***", shown, flags=re.IGNORECASE)

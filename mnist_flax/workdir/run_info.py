"""Read and write a run's `config.json`: all that evaluation, export and resuming need to know."""

import functools
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mnist_flax.config import Config, Hyperparams, from_json, to_json
from mnist_flax.errors import InputError, wrong
from mnist_flax.process.files import has_fields, read_json, write_text

CONFIG = "config.json"
FORMAT = 1  # of a run's directory; recorded, so that an older version can refuse a newer one's


@dataclass(frozen=True)
class RunInfo:
    """What `config.json` holds."""

    config: Config
    data: dict[str, Any]  # see `datasets.dataset_info`
    versions: dict[str, str]  # see `versions`
    commit: str = ""  # see `commit`; empty too in a run that an older version began
    initial: dict[str, Any] = field(default_factory=dict)  # the checkpoint with the first weights; empty: random ones
    # The hyperparameters that hold from each of these steps on, the first of which is 0; empty: those of `config`.
    hparams_by_step: dict[int, Hyperparams] = field(default_factory=dict)

    def config_at(self, step: int) -> Config:
        """The config with the hyperparameters of the update after `step` finished ones."""
        if not self.hparams_by_step:
            return self.config
        return replace(self.config, hparams=self.hparams_by_step[max(n for n in self.hparams_by_step if n <= step)])


def new(config: Config, data: dict[str, Any], initial: dict[str, Any] | None = None) -> RunInfo:
    """A run that begins now, by this code; with `initial` weights, of which `train.init_from` tells more."""
    return RunInfo(config, data, versions(), commit(), initial or {})


def trained_on(initial: dict[str, Any], sha256: dict[str, str]) -> list[str]:
    """The splits of the dataset with these checksums on which a run's first weights were trained."""
    return [split for sums, split in initial.get("trained_on", []) if sums == sha256]


def changed_versions(run: RunInfo) -> list[str]:
    """The versions that have changed since the run began, as `jax 0.10.1 (was 0.10.0)`."""
    now = versions().items()
    return [f"{name} {v} (was {run.versions.get(name, 'older')})" for name, v in now if run.versions.get(name) != v]


def write(workdir: Path, run: RunInfo) -> None:
    """Write `config.json`."""
    tree = {"format": FORMAT, "config": to_json(run.config), "data": run.data, "versions": run.versions}
    tree |= {"commit": run.commit} | ({"initial": run.initial} if run.initial else {})
    if run.hparams_by_step:
        tree["hparams_by_step"] = {f"{n}": to_json(run.config_at(n))["hparams"] for n in sorted(run.hparams_by_step)}
    write_text(workdir / CONFIG, json.dumps(tree, indent=2) + "\n")


def read(workdir: Path) -> RunInfo:
    """Read `config.json`; raises `InputError` if it is missing, or a field of it is missing, unknown or wrong.

    Its author may be somebody else: nothing in it is run, and no path in it is written to.
    """
    path, remedy = workdir / CONFIG, "restore it or choose another --workdir"
    try:
        tree = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        raise wrong("workdir", workdir, f"is not a run (it has no {CONFIG})", "give the --workdir of a run") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give another --workdir") from None
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); {remedy}") from None
    parts, later = (
        {"config", "data", "versions"},
        {"format": FORMAT, "commit": "", "initial": {}, "hparams_by_step": {}},
    )  # what older files lack
    if isinstance(tree, dict):
        tree = later | tree
        if type(tree["format"]) is int and tree["format"] > FORMAT:
            problem = f"was written by a newer version (format {tree['format']}, and this one knows {FORMAT})"
            raise wrong("workdir", workdir, problem, "update mnist_flax")
    if not isinstance(tree, dict) or tree.keys() != parts | later.keys():
        found = ", ".join(sorted(tree)) if isinstance(tree, dict) else type(tree).__name__
        raise InputError(f"{path} must hold {', '.join(sorted(parts))}, not {found}; {remedy}")
    config = from_json(tree["config"], f"{path}: config")
    for name, ok in _sound(tree).items():
        if not ok:
            raise InputError(f"{path}: {name} is missing, unknown or wrong; {remedy}")
    by_step = _hparams_by_step(tree, path)
    return RunInfo(config, tree["data"], tree["versions"], tree["commit"], tree["initial"], by_step)


def _hparams_by_step(tree: dict[str, Any], path: Path) -> dict[int, Hyperparams]:
    """The hyperparameters from each step on; raises `InputError` unless they are right and begin with step 0."""
    by_step = tree["hparams_by_step"]
    steps = [*by_step] if isinstance(by_step, dict) else ["not a dict"]
    if steps and not (all(re.fullmatch(r"0|[1-9]\d{0,14}", step, re.ASCII) for step in steps) and "0" in steps):
        raise InputError(f"{path}: hparams_by_step must map steps, the first of them 0, to hyperparameters; restore it")
    configs = {n: from_json(tree["config"] | {"hparams": by_step[n]}, f"{path}: hparams_by_step: {n}") for n in steps}
    return {int(step): config.hparams for step, config in sorted(configs.items(), key=lambda item: int(item[0]))}


def read_settings(path: Path) -> Config:
    """The settings in a run's `config.json`, or in a file that holds only these; raises `InputError`."""
    remedy = "give a run's config.json"
    try:
        tree = read_json(path)
    except OSError as error:
        raise wrong("config", path, f"cannot be read ({error.strerror})", remedy) from None
    except ValueError as error:
        raise wrong("config", path, f"is not JSON ({error})", remedy) from None
    return from_json(tree.get("config", tree) if isinstance(tree, dict) else tree, f"{path}", remedy)


def _sound(tree: dict[str, Any]) -> dict[str, bool]:
    """Which parts of `config.json` besides the config are right."""
    data, versions = tree["data"], tree["versions"]
    fields = {"image_shape", "class_names", "train_examples", "eval_examples", "sha256", "data_dir"}
    if not isinstance(data, dict) or data.keys() != fields:
        return {"data": False}

    def counts(values: Any) -> bool:
        return isinstance(values, list) and all(type(v) is int and 0 < v < 2**31 for v in values)

    def texts(values: Any) -> bool:
        return all(isinstance(v, str) and v.isprintable() for v in values)

    path = data["data_dir"]
    # No file name decodes to these halves of a character: Python could not open it.
    is_path = isinstance(path, str) and not re.search("[\\0\ud800-\udc7f\udd00-\udfff]", path)
    return {
        "image_shape": counts(data["image_shape"]) and len(data["image_shape"]) == 3,
        "class_names": isinstance(names := data["class_names"], list) and bool(names) and texts(names),
        "train_examples": counts([data["train_examples"]]),
        "eval_examples": counts([data["eval_examples"]]),
        "data_dir": is_path and os.path.isabs(path) and ".." not in Path(path).parts,
        "sha256": isinstance(data["sha256"], dict) and texts([*data["sha256"], *data["sha256"].values()]),
        "versions": isinstance(versions, dict) and texts([*versions, *versions.values()]),
        "commit": texts([tree["commit"]]),
        "initial": tree["initial"] == {} or _is_initial(tree["initial"]),
        "format": tree["format"] == FORMAT,
    }


def _is_initial(tree: Any) -> bool:
    """Whether JSON says with which weights a run began; older runs do not say on what those were trained."""
    if not has_fields(tree, {"workdir": str, "step": int, "sha256": str}):
        return False
    seen = tree.get("trained_on", [])
    return isinstance(seen, list) and all(isinstance(s, list) and [*map(type, s)] == [dict, str] for s in seen)


def identity_of(run: RunInfo) -> dict[str, Any]:
    """What a checkpoint must hold to belong to this run: the config, the data but its directory, the first weights."""
    data = {name: value for name, value in run.data.items() if name != "data_dir"}
    return {"config": to_json(run.config), "data": data} | ({"initial": run.initial} if run.initial else {})


def differing(run: RunInfo, info: dict[str, Any]) -> list[str]:
    """Where a run is another than the one that saved a checkpoint with this `info`; more epochs are the same run."""
    ours = {"initial": {}} | identity_of(run)
    theirs = {part: info.get(part, {}) for part in ours}
    names = _differing(ours, theirs)
    return [] if names == ["epochs"] and has_grown(theirs["config"], ours["config"]) else names


def has_grown(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether a config, as JSON, has more epochs than before, and a schedule that does not depend on their number."""
    fewer = type(before.get("epochs")) is int and before["epochs"] < now["epochs"]
    return now["schedule"] == "constant" and fewer


def _differing(ours: Any, theirs: Any) -> list[str]:
    """The fields in which two trees of JSON values differ, also those that only one of them has."""
    if not (isinstance(ours, dict) and isinstance(theirs, dict)):
        return []
    names = [name for name in sorted({*ours, *theirs}) if name not in ours or name not in theirs]
    for name in sorted({*ours} & {*theirs}):
        if ours[name] != theirs[name]:
            names += _differing(ours[name], theirs[name]) or [name]
    return names


@functools.cache  # of this process; looked up for every result
def versions() -> dict[str, str]:
    """The versions of Python, of the libraries that can change a result's last digits, and of this package."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "mnist_flax")
    return {"python": platform.python_version()} | {name: _version(name) for name in packages}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # only this one may run without being installed
        return "not installed"


@functools.cache  # the code that this process runs, whatever is committed later
def commit() -> str:
    """The git commit of this package, ending in + if its files have changed since.

    Empty where git does not track this file: the package was installed, maybe inside some other repository.
    """
    git = ["git", "-C", str(Path(__file__).parents[1])]
    run = functools.partial(subprocess.run, capture_output=True, text=True)
    try:
        if run([*git, "ls-files", "--error-unmatch", "--", __file__]).returncode:
            return ""
        head = run([*git, "rev-parse", "--short=12", "HEAD"]).stdout.strip()
        changed = run([*git, "status", "--porcelain", "--", "."]).stdout
    except OSError:  # git is not installed
        return ""
    return head + ("+" if head and changed else "")

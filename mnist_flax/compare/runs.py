"""Read runs without JAX: their settings, their metrics, and how far each has come.

run = read(Path("exp1"))
run.state, run.last_epoch, run.settings["l2"]
"""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnist_flax.analysis import labels
from mnist_flax.config import Config, flatten
from mnist_flax.errors import InputError
from mnist_flax.process import files
from mnist_flax.workdir import claim, run_info
from mnist_flax.workdir.run_info import RunInfo

Settings = dict[str, Any]  # JSON values by the names of the flags, and `hparams_by_step`
_NUMBERS = {"accuracy": float, "cross_entropy": float, "seconds": float}
_FIELDS: dict[str, type] = {"step": int, "epoch": int, "split": str} | _NUMBERS


@dataclass(frozen=True)
class Run:
    """A run's directory as files tell it."""

    path: Path
    info: RunInfo
    lines: list[dict[str, Any]]  # of metrics.jsonl
    in_use: bool  # a process has claimed it

    @property
    def settings(self) -> Settings:
        """Every setting, and what else decides how a run goes: its first weights, and changes of hyperparameters."""
        began = self.info.initial.get("sha256", "")[:12] or "none"
        changes = {f"{step}": vars(each) | {"seed": None} for step, each in self.info.hparams_by_step.items()}
        digest = hashlib.sha256(json.dumps(changes, sort_keys=True).encode()).hexdigest()[:8]
        changed = f"at {', '.join(changes)} ({digest})" if changes else "none"
        return _as_json(self.info.config) | {"init_from": began, "hparams_by_step": changed}

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """The lines of its evaluation split, one an epoch."""
        return [line for line in self.lines if line["split"] == "eval"]

    @property
    def last_epoch(self) -> int:
        """How many epochs are finished."""
        return self.evaluations[-1]["epoch"] if self.evaluations else 0

    @property
    def state(self) -> str:
        """`running`, `finished`, `diverged` or `stopped`."""
        if self.in_use:
            return "running"
        if claim.has_diverged(self.path):
            return "diverged"
        return "finished" if self.last_epoch >= self.info.config.epochs else "stopped"


def read(path: Path) -> Run:
    """Read the run in an absolute path; raises `InputError` if there is none, or it is damaged. Writes nothing."""
    info = run_info.read(path)
    lines = _read_metrics(claim.metrics_file(path))
    try:
        in_use = claim.is_held(path)
    except OSError:  # a colleague's, whose lock may not be opened
        in_use = False
    return Run(path, info, lines, in_use)


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; none if it is missing. The last may be half written."""
    lines: list[Any]
    try:
        texts = files.read_text(path).split("\n")[:-1]
        lines = [json.loads(text) for text in texts]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        lines = [None]
    if not all(files.has_fields(line, _FIELDS) for line in lines):
        raise InputError(f"{path} is damaged; train it again with the same settings, which restores this file")
    return lines


def _as_json(config: Config) -> Settings:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in flatten(config).items()}


def differing(all_settings: list[Settings]) -> list[str]:
    """The settings in which runs differ, in the order of the flags' help."""
    return [name for name, value in all_settings[0].items() if any(other[name] != value for other in all_settings)]


def unusual(settings: Settings) -> Settings:
    """The settings that differ from the defaults."""
    defaults = _as_json(Config()) | {"init_from": "none", "hparams_by_step": "none"}
    return {name: value for name, value in settings.items() if value != defaults[name]}


def shared(all_settings: list[Settings]) -> Settings:
    """The settings that differ from the defaults, and are the same in all runs."""
    differ = differing(all_settings)
    return {name: value for name, value in unusual(all_settings[0]).items() if name not in differ}


def described(settings: Settings, names: Iterable[str]) -> str:
    """Some of a run's settings in one line: l2=0.001, seed=1; empty if they are none."""
    return ", ".join(f"{name}={labels.shown(settings[name])}" for name in names)


def short_names(paths: list[Path]) -> list[str]:
    """A name for each of several directories: its last part, or more if two are the same."""
    if len({path.name for path in paths}) == len(paths):
        return [path.name for path in paths]
    above = os.path.commonpath(paths)
    return [os.path.relpath(path, above) for path in paths]

"""List the runs below a directory, without JAX: how far each has come, its last accuracy, its settings."""

import os
import shutil
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from mnist_flax.compare import runs
from mnist_flax.compare.runs import Settings, described
from mnist_flax.errors import InputError
from mnist_flax.process.terminal import say, table, warn
from mnist_flax.workdir import claim
from mnist_flax.workdir.run_info import CONFIG
from mnist_flax.workdir.sweep_results import SWEEP

_SHOWN = 5  # runs of one sweep


@dataclass
class ListedRun:
    """One run below a directory; what is not known is None."""

    name: str  # its path below the directory
    directory: str
    sweep: str | None  # the directory of the sweep that it is a member of
    changed: float  # when its metrics were last written, in seconds since 1970
    state: str = "damaged"  # or running, finished, stopped, diverged
    epochs_done: int | None = None
    epochs: int | None = None
    accuracy: float | None = None  # on its evaluation split, after the last epoch
    settings: Settings | None = None
    problem: str | None = None  # why it cannot be read

    def as_json(self) -> dict[str, Any]:
        """All of it; of the settings, those that differ from the defaults."""
        changed = datetime.fromtimestamp(self.changed).astimezone().isoformat(timespec="seconds")
        settings = None if self.settings is None else runs.unusual(self.settings)
        return vars(self) | {"changed": changed, "settings": settings}


def find(directory: Path) -> list[ListedRun]:
    """Every run below an absolute path, the newest first; writes nothing, and follows no symbolic link."""
    found: list[ListedRun] = []
    for path, names, entries in os.walk(directory):
        names[:] = [] if CONFIG in entries else [name for name in names if not name.startswith(".")]
        if CONFIG in entries:
            found.append(_describe(Path(path), str(Path(path).relative_to(directory))))
    return sorted(found, key=lambda run: (-run.changed, run.name))


def _describe(path: Path, name: str) -> ListedRun:
    above = path.parent.parent  # of sweep/members/0001
    sweep = above if (above / SWEEP).is_file() else None
    listed = ListedRun(name, str(path), sweep and str(sweep), _changed(path))
    try:
        run = runs.read(path)
    except InputError as error:
        listed.problem = str(error)
        return listed
    listed.state = run.state
    listed.epochs_done, listed.epochs, listed.settings = run.last_epoch, run.info.config.epochs, run.settings
    if run.evaluations and listed.state != "diverged":
        listed.accuracy = run.evaluations[-1]["accuracy"]
    return listed


def _changed(path: Path) -> float:
    times = []
    for file in (path / CONFIG, claim.metrics_file(path)):
        try:
            times.append(file.stat().st_mtime)
        except OSError:
            continue
    return max(times, default=0.0)


def print_runs(listed: list[ListedRun], show_all: bool) -> None:
    """Print a line for each run; of a sweep with many, the newest few and how many more there are."""
    hidden: dict[str, Counter[str]] = {}
    counts: Counter[str | None] = Counter()
    rows = [["run", "state", "accuracy", "when", "settings"]]
    known = [run.settings for run in listed if run.settings is not None]
    common = runs.shared(known) if len(known) > 1 else {}
    for run in listed:
        counts[run.sweep] += 1
        if run.sweep and counts[run.sweep] > _SHOWN and not show_all:
            hidden.setdefault(run.sweep, Counter())[run.state] += 1
        else:
            rows.append(_cells(run, common))
    width = shutil.get_terminal_size((10**6, 24)).columns  # in a file, nothing is cut off
    for line in table(rows, {"accuracy"}).split("\n"):
        say(line if len(line) <= width else f"{line[: width - 3]}...")
    for sweep, states in hidden.items():
        some = ", ".join(f"{count:,} {state}" for state, count in states.items())
        say(f"{os.path.relpath(sweep)}: {states.total():,} more members ({some}); --all lists them")
    if common:
        say(f"In all of them, unlike the defaults: {described(common, common)}")
    for run in listed:
        if run.problem:
            warn(f"{run.name} cannot be read: {run.problem}")


def _cells(run: ListedRun, common: Settings) -> list[str]:
    """A run's line in the table, without the settings that all runs have in common."""
    state = f"{run.state}, {run.epochs_done} of {run.epochs}" if run.state in ("running", "stopped") else run.state
    changed = datetime.fromtimestamp(run.changed)
    when = f"{changed:%d %b %H:%M}" if changed.year == datetime.now().year else f"{changed:%d %b  %Y}"
    settings = runs.unusual(run.settings) if run.settings else {}
    accuracy = "-" if run.accuracy is None else f"{run.accuracy:.2%}"
    return [run.name, state, accuracy, when, described(settings, [name for name in settings if name not in common])]

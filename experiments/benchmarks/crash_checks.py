"""What a run and a sweep promise to keep in a power cut, and what is found of it in the state of a disk.

check = RunCheck(straight)  # or a SweepCheck
check.see(call, disk)  # after each call
check.problem(tree)  # what a state of the disk lacks
"""

import functools
import hashlib
import itertools
import json
import re
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import jax
import optuna
from crash_replay import Call, Disk, Tree, read_tree

from mnist_flax.config import Config
from mnist_flax.errors import InputError, RunError
from mnist_flax.sweep import directory, experiment_file, stages, storage
from mnist_flax.sweep.trial_queue import TrialQueue
from mnist_flax.workdir import claim, run_info
from mnist_flax.workdir.resume import Saved, resume


class Found(NamedTuple):
    """What the package finds in a run's directory."""

    step: int = 0  # finished updates; 0 before the first save
    digest: str = ""  # of the state and the metrics
    error: str = ""  # why the next command would stop


def digest(saved: Saved) -> str:
    """A hash of a checkpoint's arrays, and of its metrics without their timings."""
    content = hashlib.sha256(b"".join(leaf.tobytes() for leaf in jax.tree.leaves(saved.state)))
    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in saved.history["history"]]
    content.update(json.dumps(lines).encode())
    return content.hexdigest()


@functools.cache
def find_run(tree: Tree) -> Found:
    """What training would go on from in a run's directory."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "run"
        write_tree(tree, path)
        try:
            if not claim.is_run(path):
                claim.check(path, Config())
                return Found()
            saved = resume(path, run_info.read(path), warn=lambda _: None, set_aside=True)
        except (InputError, RunError) as error:
            return Found(error=f"{type(error).__name__}: {error}".replace(scratch, "..."))
        return Found(saved.step, digest(saved) if saved.step else "")


class RunCheck:
    """The newest sound checkpoint is one that a straight run saved, and not older than the last that was reported."""

    def __init__(self, straight: dict[int, str]) -> None:
        self.straight = {0: ""} | straight  # digests by step
        self.reported = self.renamed = 0

    def see(self, call: Call, disk: Disk) -> None:
        """A save is reported when `.saved` is touched."""
        if call.name == "rename" and (match := re.fullmatch(r"run/checkpoints/(\d+)", call.path)):
            self.renamed = int(match[1])
        if call.path == "run/.saved":
            self.reported = self.renamed

    def problem(self, tree: Tree) -> str:
        """What is lost or damaged in a state of the disk; empty if nothing is."""
        found = find_run(_child(tree, "run"))
        if not found.error and found.step < self.reported:
            return f"step {self.reported} was saved, and step {found.step} is found"
        return found.error or ("" if found.digest == self.straight.get(found.step) else "other bits")


class SweepCheck:
    """A finished member stays finished, with its results; if it is one of the best, its checkpoint is there."""

    def __init__(self, experiment: Path, sweep: Path, calls: list[Call]) -> None:
        self.experiment = experiment_file.load(experiment, None)
        self.identity = directory.identity(self.experiment, None)
        # What is found of each member: in an undisturbed sweep, or for those that it removed, when it is first found.
        self.members = {path.name: find_run(read_tree(path)) for path in (sweep / "members").iterdir()}
        # Of a population only those are saved that are among the best when all its members are finished.
        saved = [re.fullmatch(r"sweep/members/(\d+)/checkpoints/\d+", call.path) for call in calls]
        self.saved = {match[1] for match in saved if match}
        self.finished: dict[str, str] = {}  # that were reported
        self.queue = functools.cache(self._queue)

    def see(self, call: Call, disk: Disk) -> None:
        """A member is reported finished when its last line in the journal is synced."""
        if call == ("sync", "sweep/optuna.journal", ""):
            files = ("optuna.journal", "sweep.json")
            self.finished, _ = self.queue(tuple((name, disk.synced(f"sweep/{name}")) for name in files))

    def problem(self, tree: Tree) -> str:
        """What is lost or damaged in a state of the disk; empty if nothing is."""
        entries = dict(_child(tree, "sweep"))
        try:
            finished, best = self.queue(tuple((name, e) for name, e in entries.items() if not isinstance(e, tuple)))
            rows = [json.loads(line) for line in entries.get("results.jsonl", b"").splitlines()]
        except (InputError, ValueError) as error:
            return f"{type(error).__name__}: {error}"
        if not self.finished.items() <= finished.items():
            return f"{len(self.finished)} members were finished, and {len(finished)} are found"
        if len(rows) > len(finished):
            return f"{len(rows)} results, and {len(finished)} members are finished"
        members = dict(_child(_child(tree, "sweep"), "members"))
        for name in self.saved.intersection(best):
            found = find_run(members.get(name, ()))
            if found.error or not found.step or found != self.members.setdefault(name, found):
                return f"the checkpoint of a finished member is lost: {found}"
        found = [find_run(members[name]) for name in members.keys() - finished.keys()]
        return next((each.error for each in found if each.error.startswith("InputError")), "")  # a RunError trains it

    def _queue(self, files: Tree) -> tuple[dict[str, str], list[str]]:
        """The results of the finished members by directory, and the directories of the best, from a sweep's files."""
        # A lock that the power cut left is broken after 30 seconds without a new line; here they pass at once.
        clock = SimpleNamespace(monotonic=itertools.count(step=31).__next__, sleep=lambda seconds: None)
        with tempfile.TemporaryDirectory() as path, mock.patch("optuna.storages.journal._file.time", clock):
            write_tree(files, Path(path) / "sweep")
            directory.check(Path(path) / "sweep", self.identity)
            opened = storage.open_journal(Path(path) / "sweep")
            names = [name for name in optuna.get_all_study_names(opened) if ", selection, " in name]
            if not names:
                return {}, []
            queue = TrialQueue(opened, names[0])
            stage = stages.Sweep(self.experiment, Path(path), queue, queue).selection()
            finished = {stage.member_dir(trial).name: json.dumps(trial.user_attrs) for trial in stage.finished()}
            return finished, [stage.member_dir(trial).name for trial in stage.kept()]


def _child(tree: Tree, name: str) -> Tree:
    """An entry of a directory; one that is not there is an empty directory."""
    return dict(tree).get(name, ())


def write_tree(tree: Tree, path: Path) -> None:
    """Create at a path what a tree says."""
    if isinstance(tree, bytes):
        path.write_bytes(tree)
    elif isinstance(tree, str):
        path.symlink_to(tree)
    else:
        path.mkdir()
        for name, child in tree:
            write_tree(child, path / name)

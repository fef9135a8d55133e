"""The two stages of a sweep: select configurations on validation data, then test the chosen ones over fresh seeds."""

import functools
import itertools
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mnist_flax.analysis.summaries import choose, without_seed
from mnist_flax.config import Config, Hyperparams
from mnist_flax.sweep.adapt import Halving
from mnist_flax.sweep.experiment import Experiment, Overrides, overrides_key, sample

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from mnist_flax.sweep.trial_queue import TrialQueue

_OF_ADAPT = ("stopped", "lineage")  # what the rows of members have besides that adapt


@dataclass(frozen=True)
class Stage:
    """A part of a sweep in which every member is trained once."""

    name: str  # `selection` or `final`
    experiment: Experiment
    queue: "TrialQueue"
    path: Path  # where the directories of the members are
    members: dict[str, dict[str, Any]]  # by key: the attributes with which a member is put into the queue
    config: Callable[[Overrides], Config]
    keeps: int  # how many members keep their checkpoints: the best ones

    def member_dir(self, trial: "optuna.Trial | FrozenTrial") -> Path:
        """The directory of a trial's member: the same for all its trials, whoever trains it."""
        return self.path / self.member_name(trial)

    def member_name(self, trial: "optuna.Trial | FrozenTrial") -> str:
        """The last part of `member_dir`."""
        return f"{self.queue.first_number(trial):04d}"

    def overrides(self, trial: "optuna.Trial | FrozenTrial") -> Overrides:
        """The overrides of a claimed member: those that it was queued with, or a sample of the search."""
        if "overrides" in trial.user_attrs:
            return trial.user_attrs["overrides"]
        return sample(self.experiment, cast("optuna.Trial", trial))

    def finished(self) -> "list[FrozenTrial]":
        """The members that are done, in the order of `members`."""
        done = self.queue.finished()
        return [done[key] for key in self.members if key in done]

    def kept(self) -> "list[FrozenTrial]":
        """The members that keep their directories, the best first; none that diverged or was stopped."""
        scores = [(self.queue.objective(trial), trial) for trial in self.finished()]
        done = [(-score, trial.number, trial) for score, trial in scores if score is not None]
        return [trial for *_, trial in sorted(done)[: self.keeps]]

    def prune(self) -> None:
        """Remove the directories of finished members that are not kept: their results are recorded."""
        kept = {trial.number for trial in self.kept()}
        there = {path.name for path in self.path.iterdir()} if self.path.exists() else set()
        for trial in self.finished():
            if trial.number not in kept and (name := self.member_name(trial)) in there:
                shutil.rmtree(self.path / name, ignore_errors=True)

    def left(self) -> int:
        """How many members are not done."""
        return len(self.members) - len(self.finished())


@dataclass(frozen=True)
class Sweep:
    """An experiment with the trial queues of its two stages."""

    experiment: Experiment
    path: Path
    selection_queue: "TrialQueue"
    final_queue: "TrialQueue"

    def selection(self) -> Stage:
        """All members of the experiment; those of one population next to each other, as workers claim them in order."""
        experiment, path = self.experiment, self.path / "members"
        if experiment.search:
            trials = self.selection_queue.study.get_trials(deepcopy=False)
            queued = {trial.user_attrs["member"] for trial in trials if "member" in trial.user_attrs}
            number = max(experiment.trials, len(queued))  # never fewer than were queued before
            members = {f"{index}": {} for index in range(number)}
        else:
            members = self._grid
        return Stage("selection", experiment, self.selection_queue, path, members, experiment.config, experiment.keep)

    @functools.cached_property
    def _grid(self) -> dict[str, dict[str, Any]]:
        populations: dict[Config, list[Overrides]] = {}
        for overrides in self.experiment.grid:
            populations.setdefault(population_key(self.experiment.config(overrides)), []).append(overrides)
        members = [*itertools.chain(*populations.values())]
        if isinstance(self.experiment.adapt, Halving) and self.experiment.adapt.across:  # seeds wait for each other
            first: dict[str, int] = {}
            members.sort(key=lambda each: first.setdefault(overrides_key(without_seed(each)), len(first)))
        return {overrides_key(each): {"overrides": each} for each in members}

    def final(self, chosen: dict[str, Overrides] | None = None) -> Stage:
        """Every chosen configuration with every fresh seed; call it only after the selection is done.

        `chosen`: the configurations by label, to plan the final test before.
        """
        experiment, rows = self.experiment, self._selected()
        chosen = (chosen or choose(rows)) if experiment.final_seeds else {}
        seeds = experiment.fresh_seeds(self._seeds(rows))
        planned = [each | {"seed": seed} for each in chosen.values() for seed in seeds]
        members, path = {overrides_key(each): {"overrides": each} for each in planned}, self.path / "final"
        return Stage("final", experiment, self.final_queue, path, members, experiment.final_config, len(members))

    def current(self) -> Stage:
        """The selection until all its members are done, then the final test."""
        selection = self.selection()
        return selection if selection.left() else self.final()

    def rows(self) -> list[dict[str, Any]]:
        """A result for each finished member, in JSON values, as `results.jsonl` holds them.

        All final tests are among them, also of configurations that were chosen before a search had more trials; but not
        those whose seed the selection has used since, which `final` replaces.
        """
        selected = self._selected()
        final, used = self._rows("final", self.final_queue, self.final_queue.finished().values()), self._seeds(selected)
        return selected + [row for row in final if row["overrides"]["seed"] not in used]

    def _seeds(self, rows: list[dict[str, Any]]) -> set[int]:
        return {row["overrides"].get("seed", self.experiment.base.hparams.seed) for row in rows}

    def _selected(self) -> list[dict[str, Any]]:
        stage = self.selection()
        rows = self._rows("selection", stage.queue, stage.finished())
        kept = {trial.number for trial in stage.kept()}
        return [row if row["trial"] in kept else row | {"workdir": None} for row in rows]

    def _rows(self, stage: str, queue: "TrialQueue", trials: "Iterable[FrozenTrial]") -> list[dict[str, Any]]:
        fields = ("overrides", "diverged_at", "history", "seconds", "workdir", "versions", "commit")
        rows = []
        for number, trial in enumerate(trials):
            method, value = self.experiment.method(trial.user_attrs["overrides"]), queue.objective(trial)
            row = {"stage": stage, "member": number, "trial": trial.number, "method": method, "value": value}
            row |= {field: queue.attribute(trial, field) for field in fields}
            row |= {"workdir": None} if value is None else {}
            rows.append(row | {name: queue.attribute(trial, name) for name in _OF_ADAPT if name in trial.user_attrs})
        return rows


def population_key(config: Config) -> Config:
    """The settings that members of one population share: all but the hyperparameters."""
    return replace(config, hparams=Hyperparams())

"""The two parts of a sweep: a selection on validation data, and the test of what was chosen, over fresh seeds."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_flax.analysis.summaries import choose
from mnist_flax.config import Config, Hyperparams
from mnist_flax.sweep.experiment import Experiment, Overrides, overrides_key, sample

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from mnist_flax.sweep.trial_queue import TrialQueue

_KEEP = 3  # members of the selection


@dataclass(frozen=True)
class Stage:
    """A part of a sweep in which every member is trained once."""

    name: str  # `selection` or `final`
    path: Path  # where the members' own directories are
    members: dict[str, dict[str, Any]]  # by key: the attributes with which a member is put into the queue
    overrides: "Callable[[optuna.Trial], Overrides]"  # of a claimed member
    config: Callable[[Overrides], Config]  # with these overrides
    keeps: int  # how many members' checkpoints stay: the best

    def member_dir(self, number: int) -> Path:
        """The directory of a member whose first trial has this number, whoever trains it."""
        return self.path / f"{number:04d}"

    def finished(self, queue: "TrialQueue") -> "list[FrozenTrial]":
        """The members that are done, in their order."""
        done = queue.finished()
        return [done[key] for key in self.members if key in done]


@dataclass(frozen=True)
class Sweep:
    """An experiment with its trial queues: what is to be done, what is done."""

    experiment: Experiment
    path: Path
    selection_queue: "TrialQueue"
    final_queue: "TrialQueue"

    def selection(self) -> Stage:
        """All members of the experiment, those of one population next to each other."""
        experiment, path = self.experiment, self.path / "members"
        if experiment.search:
            number = max(experiment.trials, len(self.selection_queue.living()))  # what was asked for once stays
            members = {f"{index}": {} for index in range(number)}
            return Stage("selection", path, members, lambda trial: sample(experiment, trial), experiment.config, _KEEP)
        populations: dict[Config, dict[str, dict[str, Any]]] = {}
        for overrides in experiment.grid:
            population = populations.setdefault(population_key(experiment.config(overrides)), {})
            population[overrides_key(overrides)] = {"overrides": overrides}
        members = {key: known for population in populations.values() for key, known in population.items()}
        return Stage("selection", path, members, _as_planned, experiment.config, _KEEP)

    def final(self) -> Stage:
        """Every chosen configuration with every fresh seed; only once the selection is done."""
        rows = self._selected()
        chosen = choose(rows) if self.experiment.final_seeds else {}
        seeds = self.experiment.fresh_seeds({self.experiment.config(row["overrides"]).hparams.seed for row in rows})
        planned = [each | {"seed": seed} for each in chosen.values() for seed in seeds]
        members = {overrides_key(overrides): {"overrides": overrides} for overrides in planned}
        return Stage("final", self.path / "final", members, _as_planned, self.experiment.final_config, len(members))

    def progress(self) -> tuple[str, int, int, list[dict[int, float]]]:
        """The running stage, how many of its members are done, of how many, and the accuracies of each running one."""
        stage, queue = self.selection(), self.selection_queue
        if len(stage.finished(queue)) == len(stage.members):
            stage, queue = self.final(), self.final_queue
        running = [trial.intermediate_values for trial in queue.running()]
        return stage.name, len(stage.finished(queue)), len(stage.members), running

    def left(self) -> int:
        """Members that are not done."""
        selection = self.selection()
        if left := len(selection.members) - len(selection.finished(self.selection_queue)):
            return left
        final = self.final()
        return len(final.members) - len(final.finished(self.final_queue))

    def rows(self) -> list[dict[str, Any]]:
        """A result for each finished member, in JSON values, as `results.jsonl` holds them.

        Everything that has been tested is among them, also what was chosen before a search had more trials.
        """
        tested = self._rows("final", list(self.final_queue.finished().values()), self.final_queue)
        return self._selected() + tested

    def _selected(self) -> list[dict[str, Any]]:
        stage = self.selection()
        return self._rows(stage.name, stage.finished(self.selection_queue), self.selection_queue)

    def _rows(self, name: str, trials: "list[FrozenTrial]", queue: "TrialQueue") -> list[dict[str, Any]]:
        fields = ("overrides", "diverged_at", "history", "seconds", "workdir", "versions", "commit")
        return [
            {
                "stage": name,
                "member": number,
                "method": self.experiment.method(trial.user_attrs["overrides"]),
                "value": queue.objective(trial),
                **{field: trial.user_attrs[field] for field in fields},
            }
            for number, trial in enumerate(trials)
        ]


def population_key(config: Config) -> Config:
    """What members must agree in to be trained as one population: all but their hyperparameters."""
    return replace(config, hparams=Hyperparams())


def _as_planned(trial: "optuna.Trial") -> Overrides:
    return trial.user_attrs["overrides"]

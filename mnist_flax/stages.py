"""The two parts of a sweep: a selection on validation data, and the test of what was chosen, over fresh seeds.

sweep = Sweep(study, path, selecting, testing)
Worker(sweep.selection(), selecting, ...).work(size, report)
Worker(sweep.final(), testing, ...).work(size, report)  # nothing is left to choose here
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_flax.config import Config, Hyperparams
from mnist_flax.experiment import Experiment, sample
from mnist_flax.overrides import Overrides, key_of
from mnist_flax.report import choose

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from mnist_flax.ledger import Ledger

_KEEP = 3  # members of the selection


@dataclass(frozen=True)
class Stage:
    """A part of a sweep in which every member is trained once."""

    name: str
    """`selection` or `final`."""
    path: Path
    """Where the members' own directories are."""
    members: dict[str, dict[str, Any]]
    """By key: what the ledger is to know of a member beforehand."""
    overrides: "Callable[[optuna.Trial], Overrides]"
    """Of a claimed member."""
    config: Callable[[Overrides], Config]
    """With these overrides."""
    keeps: int
    """How many members' checkpoints stay: the best."""

    def home(self, number: int) -> Path:
        """The directory of a member whose first trial has this number, whoever trains it."""
        return self.path / f"{number:04d}"

    def finished(self, ledger: "Ledger") -> "list[FrozenTrial]":
        """The members that are done, in their order."""
        done = ledger.finished()
        return [done[key] for key in self.members if key in done]


@dataclass(frozen=True)
class Sweep:
    """An experiment with its ledgers: what is to be done, what is done."""

    study: Experiment
    path: Path
    selecting: "Ledger"
    testing: "Ledger"

    def selection(self) -> Stage:
        """All members of the study, those of one program next to each other."""
        study, path = self.study, self.path / "members"
        if study.search:
            number = max(study.trials, len(self.selecting.members()))  # what was asked for once stays
            members = {f"{index}": {} for index in range(number)}
            return Stage("selection", path, members, lambda trial: sample(study, trial), study.config, _KEEP)
        programs: dict[Config, dict[str, dict[str, Any]]] = {}
        for overrides in study.grid:
            program = programs.setdefault(program_of(study.config(overrides)), {})
            program[key_of(overrides)] = {"overrides": overrides}
        members = {key: known for program in programs.values() for key, known in program.items()}
        return Stage("selection", path, members, _as_planned, study.config, _KEEP)

    def final(self) -> Stage:
        """Every chosen configuration with every fresh seed; to be asked for when the selection is done."""
        rows = self._selected()
        chosen = choose(rows) if self.study.final_seeds else {}
        seeds = self.study.fresh_seeds({self.study.config(row["overrides"]).hparams.seed for row in rows})
        planned = [each | {"seed": seed} for each in chosen.values() for seed in seeds]
        members = {key_of(overrides): {"overrides": overrides} for overrides in planned}
        return Stage("final", self.path / "final", members, _as_planned, self.study.final_config, len(members))

    def progress(self) -> tuple[str, int, int, list[dict[int, float]]]:
        """The running stage, its members that are done, all of them, and of each running one the objective by epoch."""
        stage, ledger = self.selection(), self.selecting
        if len(stage.finished(ledger)) == len(stage.members):
            stage, ledger = self.final(), self.testing
        running = [trial.intermediate_values for trial in ledger.running()]
        return stage.name, len(stage.finished(ledger)), len(stage.members), running

    def left(self) -> int:
        """Members that are not done."""
        selection = self.selection()
        if left := len(selection.members) - len(selection.finished(self.selecting)):
            return left
        final = self.final()
        return len(final.members) - len(final.finished(self.testing))

    def rows(self) -> list[dict[str, Any]]:
        """A result for each finished member, in JSON values, as `results.jsonl` holds them.

        Whatever has been tested is among them, also what was chosen before a search had more trials.
        """
        tested = self._rows("final", list(self.testing.finished().values()), self.testing)
        return self._selected() + tested

    def _selected(self) -> list[dict[str, Any]]:
        stage = self.selection()
        return self._rows(stage.name, stage.finished(self.selecting), self.selecting)

    def _rows(self, name: str, trials: "list[FrozenTrial]", ledger: "Ledger") -> list[dict[str, Any]]:
        fields = ("overrides", "diverged_at", "history", "seconds", "workdir", "versions", "commit")
        return [
            {
                "stage": name,
                "member": number,
                "method": self.study.method(trial.user_attrs["overrides"]),
                "value": ledger.objective(trial),
                **{field: trial.user_attrs[field] for field in fields},
            }
            for number, trial in enumerate(trials)
        ]


def program_of(config: Config) -> Config:
    """What members must agree in to be trained as one program: all but their hyperparameters."""
    return replace(config, hparams=Hyperparams())


def _as_planned(trial: "optuna.Trial") -> Overrides:
    return trial.user_attrs["overrides"]

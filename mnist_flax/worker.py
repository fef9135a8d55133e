"""One process's share of a stage: claim members, train them as populations, tell what came of it, until all is done.

Worker(stage, ledger, dataset, data_dir, fits, board, signals).work(size=16, report=report)
"""

import contextlib
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import optuna

from mnist_flax import console, data, members, record, workdir
from mnist_flax.board import Board
from mnist_flax.config import Config
from mnist_flax.ledger import Ledger
from mnist_flax.members import Member
from mnist_flax.stages import Stage, program_of

if TYPE_CHECKING:
    from mnist_flax.fit import Event

_Claimed = tuple[optuna.Trial, Member]


@dataclass(frozen=True)
class Worker:
    """What a process works on, and with."""

    stage: Stage
    ledger: Ledger
    """Of this stage."""
    dataset: data.Dataset
    data_dir: Path
    fits: Callable[[Config], int]
    """The largest population of a config."""
    board: Board
    """What people see."""
    signals: console.StopSignals
    """Deferred: a stop saves all running members and gives them back."""

    def work(self, size: int, report: Callable[[], object]) -> None:
        """Return when every member of the stage is done, by whomever.

        Args:
          size: members to claim at once.
          report: is called when there are new results.

        Raises:
          RunError: a member could not be saved.
          console.Stopped: by a signal.
        """
        stage, ledger = self.stage, self.ledger
        while True:
            if self.signals.received:
                raise console.Stopped(self.signals.received, "nothing was running; the same command goes on")
            ledger.retake(lambda trial: workdir.is_held(stage.home(ledger.first_number(trial))))
            ledger.enqueue(stage.members)
            if trials := ledger.ask(size):
                self._train_all(trials)
                report()
            elif left := len(stage.members) - len(stage.finished(ledger)):
                self.board.wait(left)
                time.sleep(1)
            else:
                return

    def _train_all(self, trials: list[optuna.Trial]) -> None:
        """Train claimed members to the end; give back those that are not there yet when something stops it."""
        try:
            with contextlib.ExitStack() as claims:
                for group in self._populations(trials, claims):
                    self._train(group)
        finally:  # when their directories are free again, so that whoever claims them next can
            self.ledger.release(trials)  # but for those that are done
        self._prune()

    def _populations(self, trials: list[optuna.Trial], claims: contextlib.ExitStack) -> list[list[_Claimed]]:
        """Open members, and put those together that share a program and a start."""
        populations: dict[tuple[Config, int], list[_Claimed]] = {}
        for trial in trials:
            config = self.stage.config(overrides := self.stage.overrides(trial))
            trial.set_user_attr("overrides", overrides)
            path = self.stage.home(self.ledger.first_number(trial))
            facts = data.facts(self.dataset, config.train_split, config.eval_split, self.data_dir)
            try:
                recorded = claims.enter_context(workdir.claim(path, record.Run(config, facts, record.versions())))
            except workdir.InUse as held:  # by a worker that was taken for dead
                console.warn(str(held))
                time.sleep(1)
                continue
            member = members.open_member(path, recorded, console.warn)
            populations.setdefault((program_of(config), member.start), []).append((trial, member))
        cut: list[list[_Claimed]] = []
        for (config, _), group in populations.items():
            most = self.fits(config)
            cut += [group[first : first + most] for first in range(0, len(group), most)]
        return cut

    def _train(self, group: list[_Claimed]) -> None:
        """Train one population to the end, or to a stop."""
        running = [member for _, member in group]
        config = running[0].recorded.config
        splits = self.dataset.read(config.train_split), self.dataset.read(config.eval_split)
        self.board.begin(self.stage.name, len(self.stage.finished(self.ledger)), len(self.stage.members))
        event = None  # stays so where the members are at their end already
        for event in members.train(running, *splits, wanted=lambda: self.signals.received is not None):
            self.board.update(event, running)
            for trial, member in group:
                self.ledger.report(trial, _objective(member))
            if self.signals.received and event.state is not None and event.step < running[0].total_steps:
                members.save(running, running, event)
                where = f"the {len(running)} running members are saved in {self.stage.path}"
                raise console.Stopped(self.signals.received, f"{where}; the same command goes on from there")
        self._finish(group, event)

    def _finish(self, group: list[_Claimed], event: "Event | None") -> None:
        """Save the members that are to stay before telling, so that none is told without its checkpoint."""
        running = [member for _, member in group]
        scores = {member: _objective(member)[-1] for member in running if member.diverged_at is None}
        others = [self.ledger.objective(trial) or 0 for trial in self.stage.finished(self.ledger)]
        least = sorted([*others, *scores.values(), 0], reverse=True)[: self.stage.keeps][-1]
        if event:
            members.save([member for member in scores if scores[member] >= least], running, event)
        note = {"versions": record.versions(), "commit": record.commit()}
        for trial, member in group:
            history = member.info["history"]
            note |= {"history": history, "seconds": round(sum(line["seconds"] for line in history), 3)}
            note |= {"diverged_at": member.diverged_at, "workdir": f"{member.path.parent.name}/{member.path.name}"}
            self.ledger.tell(trial, _objective(member), scores.get(member), note)

    def _prune(self) -> None:
        """Remove the directories of finished members that are not among the best: all there is to know is told."""
        finished = self.stage.finished(self.ledger)
        ranked = sorted(finished, key=lambda trial: (-(self.ledger.objective(trial) or 0), trial.number))
        for trial in ranked[self.stage.keeps :]:
            shutil.rmtree(self.stage.path.parent / trial.user_attrs["workdir"], ignore_errors=True)


def _objective(member: Member) -> list[float]:
    """Accuracy on the evaluation split after each epoch."""
    return [line["accuracy"] for line in member.info["history"] if line["split"] == "eval"]

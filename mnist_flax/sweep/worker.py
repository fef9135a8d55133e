"""One process of a sweep: claim members, train them as populations, record their results, until all are done."""

import contextlib
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial

from mnist_flax.config import Config
from mnist_flax.data.datasets import Dataset, dataset_info
from mnist_flax.process.signals import Stopped, StopSignals
from mnist_flax.process.terminal import warn
from mnist_flax.sweep import members
from mnist_flax.sweep.members import Member
from mnist_flax.sweep.progress import SweepProgress
from mnist_flax.sweep.stages import Stage, population_key
from mnist_flax.workdir import claim, run_info
from mnist_flax.workdir.run_info import commit, versions

if TYPE_CHECKING:
    from mnist_flax.loop import Event

_Claimed = tuple[optuna.Trial, Member]


@dataclass(frozen=True)
class Worker:
    """Trains members of one stage in this process."""

    stage: Stage
    dataset: Dataset
    data_dir: Path
    fits: Callable[[Config], int]  # the largest population of a config
    progress: SweepProgress
    signals: StopSignals  # deferred: before it stops, the worker saves and releases its members

    @functools.cached_property
    def _data_info(self) -> Callable[[str, str], dict[str, Any]]:
        """What the runs record about a training and an evaluation split, which members share: read once."""
        return functools.cache(functools.partial(dataset_info, self.dataset, data_dir=self.data_dir))

    def work(self, size: int, write_results: Callable[[], object]) -> None:
        """Return when every member of the stage is done, here or elsewhere; claim up to `size` members at once.

        Calls `write_results` when there are new ones. Raises `RunError` if a member could not be saved.
        """
        stage, queue = self.stage, self.stage.queue
        while True:
            if self.signals.received:
                raise Stopped(self.signals.received, "nothing was running; the same command goes on")
            queue.retake_lost(lambda trial: claim.is_held(stage.member_dir(trial)))
            queue.enqueue(stage.members)
            if trials := queue.claim(size):
                self._train_all(trials)
                write_results()
            elif left := stage.left():
                self.progress.wait(left)
                time.sleep(1)
            else:
                return

    def _train_all(self, trials: list[optuna.Trial]) -> None:
        """Train claimed members to the end; if something stops that, release those that are not done."""
        try:
            with contextlib.ExitStack() as claims:
                for group in self._populations(trials, claims):
                    self._train(group)
        finally:  # after the claims on their directories have ended, so that other workers can use them
            self.stage.queue.release(trials)
        self.stage.prune()

    def _populations(self, trials: list[optuna.Trial], claims: contextlib.ExitStack) -> list[list[_Claimed]]:
        """Open members, and group those that share all settings but hyperparameters, and their first step."""
        populations: dict[tuple[Config, int], list[_Claimed]] = {}
        for trial in trials:
            if member := self.open_member(trial, claims):
                populations.setdefault((population_key(member.run.config), member.start), []).append((trial, member))
        cut: list[list[_Claimed]] = []
        for (config, _), group in populations.items():
            most = self.fits(config)
            cut += [group[first : first + most] for first in range(0, len(group), most)]
        return cut

    def open_member(self, trial: optuna.Trial | FrozenTrial, claims: contextlib.ExitStack) -> Member | None:
        """The member of a claimed trial at its latest checkpoint; None if its directory, which it holds, is in use."""
        config = self.stage.config(overrides := self.stage.overrides(trial))
        trial.set_user_attr("overrides", overrides)
        path = self.stage.member_dir(trial)
        try:
            info = self._data_info(config.train_split, config.eval_split)
            run = claims.enter_context(claim.claim(path, run_info.new(config, info)))
        except claim.InUse as held:  # by a worker that seemed dead
            warn(str(held))
            time.sleep(1)
            return None
        member = members.open_member(path, run, warn)
        if restored := accuracies(member):  # they say nothing about the pace
            trial.set_user_attr("restored_epochs", len(restored))
        return member

    def _train(self, group: list[_Claimed]) -> None:
        """Train one population to the end, or to a stop."""
        running = [member for _, member in group]
        config = running[0].run.config
        splits = self.dataset.read(config.train_split), self.dataset.read(config.eval_split)
        self.progress.begin(self.stage)
        event = None  # stays None if the members were trained to their end before
        for event in members.train(running, *splits, needs_state=lambda: self.signals.received is not None):
            for trial, member in group:
                self.stage.queue.report_accuracies(trial, accuracies(member))
            self.progress.update(event, running)
            if self.signals.received and event.state is not None and event.step < running[0].program.total_steps:
                members.save(running, running, event)
                where = f"the {len(running)} running members are saved in {self.stage.path}"
                raise Stopped(self.signals.received, f"{where}; the same command goes on from there")
        self._finish(group, event)

    def _finish(self, group: list[_Claimed], event: "Event | None") -> None:
        """Save the kept members first, so that no result is recorded before its checkpoint exists."""
        running = [member for _, member in group]
        if event:
            members.save(self.best_of(running), running, event)
        for trial, member in group:
            self.record(trial, member)

    def best_of(self, done: list[Member]) -> list[Member]:
        """Those of some members at their end that are among the best, which the stage keeps."""
        scores = {member: accuracies(member)[-1] for member in done if member.diverged_at is None}
        names = {member.path.name for member in done}  # after a kill, some of them may be recorded
        trials = [trial for trial in self.stage.finished() if self.stage.member_name(trial) not in names]
        others = [self.stage.queue.objective(trial) or 0 for trial in trials]
        lowest_kept = sorted([*others, *scores.values(), 0], reverse=True)[: self.stage.keeps][-1]
        return [member for member in scores if scores[member] >= lowest_kept]

    def record(self, trial: optuna.Trial, member: Member, more: dict[str, Any] | None = None) -> None:
        """Record a member's results, with `more` attributes; without a value if it has not reached its last step."""
        history, scores = member.history["history"], accuracies(member)
        is_done = member.diverged_at is None and len(scores) == member.run.config.epochs
        attributes = {"versions": versions(), "commit": commit(), "history": history}
        attributes |= {"seconds": round(sum(line["seconds"] for line in history), 3), "diverged_at": member.diverged_at}
        attributes |= {"workdir": f"{member.path.parent.name}/{member.path.name}"} | (more or {})
        self.stage.queue.finish(trial, scores, scores[-1] if is_done else None, attributes)


def accuracies(member: Member) -> list[float]:
    """Accuracy on the evaluation split after each epoch; 0 for one in which the member diverged before it copied."""
    found = {line["epoch"]: line["accuracy"] for line in member.history["history"] if line["split"] == "eval"}
    return [found.get(epoch, 0.0) for epoch in range(1, max(found, default=0) + 1)]

"""Train a stage as one population whose members copy each other: population-based training (Jaderberg et al., 2017).

PopulationWorker(stage, dataset, data_dir, fits, progress, signals, method, seed).work(16, write_results)

One worker at a time has the whole population; if it dies, another takes over. Every decision follows from the scores in
the members' histories, so nothing else is stored: a worker that takes over makes the same decisions again.
"""

import contextlib
import json
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import optuna

from mnist_flax.errors import InputError, RunError, first_line
from mnist_flax.process import files
from mnist_flax.process.signals import Stopped
from mnist_flax.process.terminal import warn
from mnist_flax.sweep import members
from mnist_flax.sweep.adapt import PopulationBased
from mnist_flax.sweep.directory import NOTE
from mnist_flax.sweep.lanes import Lanes
from mnist_flax.sweep.lineage import Population
from mnist_flax.sweep.members import Member
from mnist_flax.sweep.worker import Worker, accuracies
from mnist_flax.workdir import checkpoint, claim, run_info
from mnist_flax.workdir.resume import load, new_history

LINEAGE = "lineage.jsonl"


@dataclass(frozen=True)
class PopulationWorker(Worker):
    """Trains all members of the selection in this process."""

    method: PopulationBased
    seed: int

    def work(self, size: int, write_results: Callable[[], object]) -> None:
        """As `Worker.work`, all members at once; a stop waits for the end of the running epoch."""
        stage, queue = self.stage, self.stage.queue
        while left := stage.left():
            if self.signals.received:
                raise Stopped(self.signals.received, "nothing was running; the same command goes on")
            queue.retake_lost(lambda trial: claim.is_held(stage.member_dir(trial)))
            trials = self._claim()
            try:
                with contextlib.ExitStack() as claims:
                    if len(trials) == left and (population := self._open(trials, claims)):
                        self._train_population(population, trials)
            finally:
                queue.release(trials)
            if stage.left() == 0:
                stage.prune()
                write_results()
                return
            self.progress.wait(left)
            time.sleep(random.uniform(0.5, 1.5))  # two that have begun together do not try together again

    def _claim(self) -> list[optuna.Trial]:
        """All members that are not done, or none: whoever has the first of them gets the others."""
        stage, queue = self.stage, self.stage.queue
        done = queue.finished()
        keys = [key for key in stage.members if key not in done]
        if queue.running():  # by another worker
            return []
        queue.enqueue({key: stage.members[key] for key in keys[:1]})
        trials = queue.claim(len(keys))  # also what a worker has queued that died before it claimed it
        if any(trial.user_attrs["member"] == keys[0] for trial in trials):
            queue.enqueue({key: stage.members[key] for key in keys})
            trials += queue.claim(len(keys) - len(trials))
        return sorted(trials, key=lambda trial: keys.index(trial.user_attrs["member"]))

    def _open(self, trials: list[optuna.Trial], claims: contextlib.ExitStack) -> Population | None:
        """All members at the last step that was saved, those that are done too; None if a directory is in use."""
        queue = self.stage.queue
        mine, done = {trial.user_attrs["member"]: trial for trial in trials}, queue.finished()
        opened: list[Member] = []
        for key in self.stage.members:
            if (member := self.open_member(mine.get(key) or done[key], claims)) is None:
                return None
            opened.append(member)
        population = Population(opened, self.method, self.seed)
        population.begin()
        if not self._restore(population):
            for member in opened:  # nothing was saved, or not all of it is there: the same again, from the first step
                shutil.rmtree(claim.checkpoints_dir(member.path), ignore_errors=True)
                member.start, member.state, member.diverged_at = 0, None, None
                member.history = new_history(member.run)
        return population

    def _restore(self, population: Population) -> bool:
        """Restore all members at the step of the last save, and decide again what followed from their scores."""
        try:
            note = files.read_json(self._note)
            step, diverged = int(note["step"]), dict(note["diverged"])
            for member in population.members:
                for later in (n for n in checkpoint.steps(claim.checkpoints_dir(member.path)) if n > step):
                    shutil.rmtree(claim.checkpoints_dir(member.path) / f"{later}")
                member.start, member.state = step, None
                if member.path.name in diverged:
                    member.diverged_at, member.history = diverged[member.path.name]
                else:
                    saved = load(member.path, member.run, step, warn=warn)
                    member.state, member.history = saved.state, saved.history
        except FileNotFoundError:
            return False
        except (OSError, ValueError, TypeError, KeyError, InputError, RunError) as error:
            warn(f"the population cannot go on from its last save ({first_line(error)}); it starts again from scratch")
            return False
        epoch, epochs = step // population.members[0].program.steps_per_epoch, population.members[0].run.config.epochs
        for generation in range(1, -(-epoch // self.method.every)):
            population.evolve(generation)
        if epoch % self.method.every == 0 and epoch < epochs:
            states = [member.state for member in population.members]
            for member, index in zip(population.members, population.evolve(epoch // self.method.every), strict=True):
                member.diverged_at = member.diverged_at if population.members[index] is member else None
                member.state = states[index]
        return True

    @property
    def _note(self) -> Path:
        """The file that says which step of all members was saved."""
        return self.stage.path.parent / NOTE

    def _save(self, population: Population) -> None:
        """Save all members at their step, then note that they are."""
        step = population.members[0].start
        for index, member in enumerate(population.members):
            if member.diverged_at is None:
                self._save_one(population, index, max(2, member.run.config.keep))  # two: if this is cut short
        diverged = {m.path.name: [m.diverged_at, m.history] for m in population.members if m.diverged_at is not None}
        files.write_text(self._note, json.dumps({"step": step, "diverged": diverged}))

    def _save_one(self, population: Population, index: int, keep: int) -> None:
        member = population.members[index]
        run_info.write(member.path, member.run)
        files.write_lines(member.path / LINEAGE, population.lineages[index])
        members.save_member(member, member.start, member.state, keep)

    def _train_population(self, population: Population, trials: list[optuna.Trial]) -> None:
        """Train generation after generation, and record the results."""
        running, saved = population.members, time.monotonic()
        config, program = running[0].run.config, running[0].program
        self.progress.begin(self.stage)
        splits = self.dataset.read(config.train_split), self.dataset.read(config.eval_split)
        lanes = Lanes(len(running), running[0], *splits)
        lanes.seat(running)
        by_key = dict(zip(self.stage.members, running, strict=True))
        while (epoch := running[0].start // program.steps_per_epoch) < config.epochs:
            for _ in lanes.train_epoch():
                pass
            epoch += 1
            for trial in trials:
                self.stage.queue.report_accuracies(trial, accuracies(by_key[trial.user_attrs["member"]]))
            self.progress.update_lanes(self.stage, running, len(running))
            stop = self.signals.received if epoch < config.epochs else None
            if stop or (epoch < config.epochs and time.monotonic() - saved > members.SAVE_SECONDS):
                self._save(population)  # before they copy, so that a checkpoint holds the weights that were scored
                saved = time.monotonic()
            if stop:
                where = f"the {len(running)} running members are saved in {self.stage.path}"
                raise Stopped(stop, f"{where}; the same command goes on from there")
            if epoch % self.method.every == 0 and epoch < config.epochs:
                self._copy(population, lanes, epoch // self.method.every)
        for member in self.best_of(running):
            self._save_one(population, running.index(member), member.run.config.keep)
        for trial in trials:
            member = by_key[trial.user_attrs["member"]]
            self.record(trial, member, {"lineage": population.lineages[running.index(member)]})

    def _copy(self, population: Population, lanes: Lanes, generation: int) -> None:
        """Let members copy others, and say who does."""
        source, running = population.evolve(generation), population.members
        lanes.copy(source)
        copies = [(running[i], running[index]) for i, index in enumerate(source) if i != index]
        for member, _ in copies:
            member.diverged_at = None
        names = ", ".join(f"{member.path.name} from {theirs.path.name}" for member, theirs in copies)
        self.progress.say(f"generation {generation}: {len(copies)} of {len(running)} members copy another: {names}")

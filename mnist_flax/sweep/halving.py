"""Train a stage by asynchronous successive halving: the lane of a member that stops takes the next waiting member.

HalvingWorker(stage, dataset, data_dir, fits, progress, signals, Decisions(stage, halving, log)).work(16, write_results)

After each epoch of its lanes a worker first stores what all of them scored, as one batch. Who goes on follows from the
stored order alone, so a worker that was killed decides as it would have.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import jax
from optuna.trial import TrialState

from mnist_flax.config import Config
from mnist_flax.process.signals import Stopped
from mnist_flax.sweep import members
from mnist_flax.sweep.decisions import Decisions, Entrant
from mnist_flax.sweep.lanes import Lanes
from mnist_flax.sweep.rungs import Standing
from mnist_flax.sweep.stages import population_key
from mnist_flax.sweep.worker import Worker, accuracies
from mnist_flax.workdir import claim


@dataclass(frozen=True)
class HalvingWorker(Worker):
    """Trains members of the selection in this process; any number of workers share the queue and the log."""

    decisions: Decisions

    def work(self, size: int, write_results: Callable[[], object]) -> None:
        """As `Worker.work`, in at most `size` lanes; a stop waits for the end of the running epoch."""
        entrants: list[Entrant] = []
        lanes, saved = None, time.monotonic()
        try:
            while True:
                if self.signals.received:
                    self._save(entrants)
                    where = f"the {len(entrants)} running members are saved in {self.stage.path}"
                    raise Stopped(self.signals.received, f"{where}; the same command goes on from there")
                self.stage.queue.retake_lost(lambda trial: claim.is_held(self.stage.member_dir(trial)))
                if self._fill(entrants, size):
                    write_results()
                lanes = self._lanes(entrants, lanes, size)
                if lanes and lanes.running():
                    self._train_epoch(lanes)
                elif left := self.stage.left():
                    self.progress.wait(left)
                    time.sleep(1)
                else:
                    return
                if time.monotonic() - saved > members.SAVE_SECONDS:
                    self._save(entrants)
                    saved = time.monotonic()
        finally:  # directories first, so that other workers can use them
            for entrant in entrants:
                entrant.lock.close()
            self.stage.queue.release([entrant.trial for entrant in entrants])

    def _fill(self, entrants: list[Entrant], size: int) -> bool:
        """Decide what is decided, and claim members for the lanes that are free; whether any member was recorded.

        While some are behind, the others do not train and nothing is decided, so that all go on as they would have.
        """
        any_done = False
        while True:
            done = not any(entrant.is_behind for entrant in entrants) and self._decide(entrants)
            any_done |= done
            training = [entrant for entrant in entrants if not entrant.waits]
            programs = {population_key(entrant.member.run.config) for entrant in training}
            room = min([size, *map(self.fits, programs)]) - len(training)
            claimed = self._claim(room) if room > 0 and len(programs) < 2 else []
            entrants += claimed
            if not claimed and not done:
                return any_done

    def _claim(self, room: int) -> list[Entrant]:
        """Claim members in their order, those that a killed worker has left first, so queue none before its turn."""
        queue, planned = self.stage.queue, self.stage.members
        counted = queue.counted()
        waiting = sum(trial.state == TrialState.WAITING for trial in counted.values())
        missing = [key for key in planned if key not in counted][: max(room - waiting, 0)]
        queue.enqueue({key: planned[key] for key in missing})
        trials, found = queue.claim(room), []
        for trial in sorted(trials, key=queue.first_number):
            lock = contextlib.ExitStack()
            if member := self.open_member(trial, lock):
                found.append(Entrant(trial, member, queue.first_number(trial), lock))
            else:
                queue.release([trial])
        if found:
            self.decisions.look_up(found)
        return found

    def _decide(self, entrants: list[Entrant]) -> bool:
        """Record the members that are done or stop; whether any are."""
        done, stopped = self.decisions.judge(entrants)
        for member in self.best_of([entrant.member for entrant in done]):
            members.save_member(member, member.start, member.state, member.run.config.keep)
        for entrant in (*done, *stopped):
            found = stopped.get(entrant)
            note = {"epoch": len(accuracies(entrant.member)), **found._asdict()} if found else None
            self.record(entrant.trial, entrant.member, {"stopped": note} if note else None)
            entrants.remove(entrant)
            entrant.lock.close()
        self._say(stopped)
        if done or stopped:
            self.stage.prune()
        return bool(done or stopped)

    def _lanes(self, entrants: list[Entrant], lanes: Lanes | None, size: int) -> Lanes | None:
        """Seat those that may train: in these lanes, or in new ones for another program, or for the last few.

        Who has a lane follows from who may train, the lowest number first, so that it is the same after a kill.
        """
        behind = [entrant for entrant in entrants if entrant.is_behind]
        ready = sorted(behind or [e for e in entrants if not e.waits], key=lambda entrant: entrant.number)
        key = population_key(ready[0].member.run.config) if ready else None
        wanted = [entrant.member for entrant in ready if population_key(entrant.member.run.config) == key]
        if key:
            number = self._number_of_lanes(entrants, key, size)
            if lanes is None or (population_key(lanes.config), len(lanes.members)) != (key, number):
                self.progress.begin(self.stage)
                splits = self.dataset.read(key.train_split), self.dataset.read(key.eval_split)
                lanes = Lanes(number, wanted[0], *splits)
        if lanes:
            lanes.seat(wanted[: len(lanes.members)])
        return lanes

    def _number_of_lanes(self, entrants: list[Entrant], key: Config, size: int) -> int:
        """As many as fit. An empty lane costs a CPU as much as any other, so the last few members get fewer.

        Never one: alone, a member's last digits differ.
        """
        number = min(size, self.fits(key))
        mine = sum(population_key(entrant.member.run.config) == key for entrant in entrants)
        is_last = mine < len(entrants) or len(self.stage.queue.finished()) + mine >= len(self.stage.members)
        while is_last and jax.default_backend() == "cpu" and 2 * mine <= number > 2:
            number = (number + 1) // 2
        return number

    def _train_epoch(self, lanes: Lanes) -> None:
        for _ in lanes.train_epoch():
            pass
        self.progress.update_lanes(self.stage, lanes.running(), len(lanes.members))

    def _save(self, entrants: list[Entrant]) -> None:
        """Save every member that has trained; first the log, so that no checkpoint is ahead of it."""
        if not any(entrant.is_behind for entrant in entrants):
            self.decisions.report(entrants)
        for member in (entrant.member for entrant in entrants):
            if member.start and member.diverged_at is None:
                members.save_member(member, member.start, member.state, member.run.config.keep)

    def _say(self, stopped: dict[Entrant, Standing]) -> None:
        """Say who stops, and why."""
        reasons = Counter((len(accuracies(e.member)), found.kept, found.of) for e, found in stopped.items())
        for (epoch, kept, of), number in reasons.items():
            what = "configurations" if self.decisions.halving.across else "members"
            after = f"epoch {epoch}" if epoch == 1 else f"{epoch} epochs"
            self.progress.say(f"{number} stopped after {after}: not among the best {kept} of {of} {what} there")

"""Train a stage by asynchronous successive halving: the lane of a member that stops takes the next waiting member.

HalvingWorker(stage, dataset, data_dir, fits, progress, signals, halving, log).work(16, write_results)

After each epoch of its lanes a worker first stores what all of them scored, as one batch. Who goes on follows from the
stored order alone, so a worker that was killed decides as it would have.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import jax
import optuna
from optuna.trial import TrialState

from mnist_flax.config import Config
from mnist_flax.process.signals import Stopped
from mnist_flax.sweep import members
from mnist_flax.sweep.adapt import Halving
from mnist_flax.sweep.lanes import Lanes
from mnist_flax.sweep.members import Member
from mnist_flax.sweep.rungs import Report, ReportLog, Standing, Team, standing, teams_of
from mnist_flax.sweep.stages import population_key
from mnist_flax.sweep.worker import Worker, accuracies
from mnist_flax.workdir import claim


@dataclass(eq=False)
class Entrant:
    """A claimed member, until it is done or stops."""

    trial: optuna.Trial
    member: Member
    number: int  # in the name of its directory
    lock: contextlib.ExitStack  # holds its directory
    logged: int = 0  # the last epoch that the log had of it when it was claimed
    diverges: bool = False  # after that, as the log says
    passed: int = 0  # the last rung after which it goes on
    waits: bool = False  # at a rung, for the other members of its team

    @property
    def is_behind(self) -> bool:
        """Whether a killed worker had trained and logged more than it had saved."""
        return self.member.diverged_at is None and (self.diverges or len(accuracies(self.member)) < self.logged)


@dataclass(frozen=True)
class HalvingWorker(Worker):
    """Trains members of the selection in this process; any number of workers share the queue and the log."""

    halving: Halving
    log: ReportLog

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
            self._look_up(found)
        return found

    def _look_up(self, claimed: list[Entrant]) -> None:
        """Note how far each had come by the log, and who waits there for its team."""
        batches, teams = self.log.batches(), teams_of(self.stage, self.halving.across)
        reports = [report for batch in batches for report in batch]
        for entrant in claimed:
            mine = [report for report in reports if report.member == entrant.number]
            entrant.logged = max((report.epoch for report in mine if report.accuracy is not None), default=0)
            entrant.diverges = any(report.accuracy is None for report in mine)
            rung = self.halving.rung(entrant.logged, entrant.member.run.config.epochs)
            entrant.waits = (
                not entrant.diverges and rung is not None and not self._standing(entrant, rung, batches, teams)
            )

    def _decide(self, entrants: list[Entrant]) -> bool:
        """Record the members that are done or stop; whether any are."""
        done, stopped = self._judge(entrants)
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

    def _judge(self, entrants: list[Entrant]) -> tuple[list[Entrant], dict[Entrant, Standing]]:
        """Store new scores; returns who is done and who stops, by all that is stored. The others go on, or wait."""
        batches, done, stopped = self._report(entrants), list[Entrant](), dict[Entrant, Standing]()
        teams = teams_of(self.stage, self.halving.across) if entrants else {}
        for entrant in entrants:
            epoch, epochs = len(accuracies(entrant.member)), entrant.member.run.config.epochs
            rung = self.halving.rung(epoch, epochs)
            if entrant.member.diverged_at is not None or epoch == epochs:
                done.append(entrant)
            elif rung and rung > entrant.passed:
                found = self._standing(entrant, rung, batches, teams)
                entrant.waits, entrant.passed = found is None, rung if found and found.goes_on else entrant.passed
                if found and not found.goes_on:
                    stopped[entrant] = found
        return done, stopped

    def _standing(
        self, entrant: Entrant, rung: int, batches: list[list[Report]], teams: dict[int, Team]
    ) -> Standing | None:
        """Where its team stands at a rung; a team that was stopped stays so, whoever joins it later."""
        team = teams[entrant.number]
        for trial in self.stage.finished() if self.halving.across else []:
            if (note := trial.user_attrs.get("stopped")) and teams[self.stage.queue.first_number(trial)] == team:
                return Standing(*(note[name] for name in Standing._fields))
        return standing(batches, rung, team, teams, self.halving.keep)

    def _report(self, ready: list[Entrant]) -> list[list[Report]]:
        """Store what is not in the log yet; returns all batches."""
        batches = self.log.batches()
        known = {(report.member, report.epoch) for batch in batches for report in batch}
        batch = []
        for entrant in ready:
            scores, epochs = accuracies(entrant.member), entrant.member.run.config.epochs
            self.stage.queue.report_accuracies(entrant.trial, scores)
            epoch = len(scores)
            if entrant.member.diverged_at is not None and (rung := self.halving.next_rung(epoch, epochs)):
                batch.append(Report(entrant.number, rung, None))
            elif scores:
                batch.append(Report(entrant.number, epoch, scores[-1]))
        if new := [report for report in batch if (report.member, report.epoch) not in known]:
            self.log.append(new)
            return self.log.batches()
        return batches

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
            self._report(entrants)
        for member in (entrant.member for entrant in entrants):
            if member.start and member.diverged_at is None:
                members.save_member(member, member.start, member.state, member.run.config.keep)

    def _say(self, stopped: dict[Entrant, Standing]) -> None:
        """Say who stops, and why."""
        reasons = Counter((len(accuracies(e.member)), found.kept, found.of) for e, found in stopped.items())
        for (epoch, kept, of), number in reasons.items():
            what = "configurations" if self.halving.across else "members"
            after = f"epoch {epoch}" if epoch == 1 else f"{epoch} epochs"
            self.progress.say(f"{number} stopped after {after}: not among the best {kept} of {of} {what} there")

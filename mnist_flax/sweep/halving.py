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

from mnist_flax.process.signals import Stopped
from mnist_flax.sweep import members
from mnist_flax.sweep.adapt import Halving
from mnist_flax.sweep.lanes import Lanes
from mnist_flax.sweep.members import Member
from mnist_flax.sweep.rungs import Report, ReportLog, Standing, standing, teams_of
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
    passed: int = 0  # the last rung after which it goes on
    waits: bool = False  # at a rung, for the other members of its team
    delay: int = 0  # epochs of the others before it has caught up with them, as they are further behind


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
                if self._fill(entrants, lanes, size):
                    write_results()
                lanes = self._lanes(entrants, lanes, size)
                if lanes and lanes.running():
                    self._train_epoch(lanes, entrants)
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

    def _fill(self, entrants: list[Entrant], lanes: Lanes | None, size: int) -> bool:
        """Decide what is decided, and claim members for the lanes that this frees; whether any member was recorded."""
        any_done, number = False, len(lanes.members) if lanes else size
        while True:
            done = self._decide(entrants, lanes)
            any_done |= done
            one_program = len({population_key(entrant.member.run.config) for entrant in entrants}) < 2
            room = number - sum(not entrant.waits for entrant in entrants)
            claimed = self._claim(room) if room > 0 and one_program else []
            if claimed and not (lanes and lanes.running()):
                self._delay(claimed)
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
        return found

    def _delay(self, claimed: list[Entrant]) -> None:
        """Let members whose checkpoint is older catch up first, so that all reach their next rung in the same order."""
        reached = Counter[int]()
        for report in (report for batch in self.log.batches() for report in batch if report.accuracy is not None):
            reached[report.member] = max(reached[report.member], report.epoch)
        lag = [max(reached[each.number] - len(accuracies(each.member)), 0) for each in claimed]
        for entrant, own in zip(claimed, lag, strict=True):
            entrant.delay = max(lag) - own

    def _decide(self, entrants: list[Entrant], lanes: Lanes | None) -> bool:
        """Record the members that are done or stop, and free their lanes; whether any are."""
        done, stopped = self._judge([entrant for entrant in entrants if not entrant.delay])
        for member in self.best_of([entrant.member for entrant in done]):
            members.save_member(member, member.start, member.state, member.run.config.keep)
        for entrant in (*done, *stopped):
            found = stopped.get(entrant)
            note = {"epoch": len(accuracies(entrant.member)), **found._asdict()} if found else None
            self.record(entrant.trial, entrant.member, {"stopped": note} if note else None)
            entrants.remove(entrant)
            entrant.lock.close()
        training = {entrant.member for entrant in entrants if not entrant.waits}
        if lanes:
            for member in {*lanes.running()} - training:
                lanes.release(member)
        self._say(stopped)
        if done or stopped:
            self.prune()
        return bool(done or stopped)

    def _judge(self, ready: list[Entrant]) -> tuple[list[Entrant], dict[Entrant, Standing]]:
        """Store new scores; returns who is done and who stops, by all that is stored. The others go on, or wait."""
        batches, done, stopped = self._report(ready), list[Entrant](), dict[Entrant, Standing]()
        teams = teams_of(self.stage, self.halving.across) if ready else {}
        for entrant in ready:
            epoch, epochs = len(accuracies(entrant.member)), entrant.member.run.config.epochs
            rung = self.halving.rung(epoch, epochs)
            if entrant.member.diverged_at is not None or epoch == epochs:
                done.append(entrant)
            elif rung and rung > entrant.passed:
                found = standing(batches, rung, teams[entrant.number], teams, self.halving.keep)
                entrant.waits, entrant.passed = found is None, rung if found and found.goes_on else entrant.passed
                if found and not found.goes_on:
                    stopped[entrant] = found
        return done, stopped

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
        """Seat the members that may train: in these lanes, or in new ones for another program, or for the last few."""
        seated = lanes.running() if lanes else []
        ready = [e.member for e in entrants if not e.waits and not e.delay and e.member not in seated]
        if not (seated or ready):
            for entrant in entrants:  # nobody is left that they could wait for
                entrant.delay = 0
            return lanes
        key = population_key((seated or ready)[0].run.config)
        mine = sum(population_key(entrant.member.run.config) == key for entrant in entrants)  # who is delayed too
        others = mine < len(entrants)
        ready = [member for member in ready if population_key(member.run.config) == key]
        if not seated and (lanes is None or population_key(lanes.config) != key):
            most = self.fits(key)
            lanes = self._new_lanes(min(len(ready) if others else size, size, most), ready[0])
        assert lanes
        is_last = others or len(self.stage.queue.finished()) + len(entrants) >= len(self.stage.members)
        if is_last and jax.default_backend() == "cpu" and 2 * mine <= len(lanes.members) > 2:
            # An empty lane costs a CPU as much as any other, so the last few members get half as many. Not one: alone,
            # a member's last digits differ.
            ready, lanes = [*seated, *ready], self._new_lanes((len(lanes.members) + 1) // 2, [*seated, *ready][0])
        for lane, member in zip(lanes.free(), ready, strict=False):
            lanes.seat(lane, member)
        return lanes

    def _new_lanes(self, size: int, like: Member) -> Lanes:
        self.progress.begin(self.stage)
        config = like.run.config
        return Lanes(size, like, self.dataset.read(config.train_split), self.dataset.read(config.eval_split))

    def _train_epoch(self, lanes: Lanes, entrants: list[Entrant]) -> None:
        for _ in lanes.train_epoch():
            pass
        for entrant in entrants:
            entrant.delay = max(entrant.delay - 1, 0)
        self.progress.update_lanes(self.stage, lanes.running(), len(lanes.members))

    def _save(self, entrants: list[Entrant]) -> None:
        """Save every member that has trained."""
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

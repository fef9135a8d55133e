"""Who of a halving's members goes on, stops or waits: by the order of what is stored alone.

decisions = Decisions(stage, halving, log)
done, stopped = decisions.judge(entrants)  # after each epoch; stores what they scored
"""

import contextlib
from dataclasses import dataclass

import optuna

from mnist_flax.sweep.adapt import Halving
from mnist_flax.sweep.members import Member
from mnist_flax.sweep.rungs import Report, ReportLog, Standing, Team, standing, teams_of
from mnist_flax.sweep.stages import Stage
from mnist_flax.sweep.worker import accuracies


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
class Decisions:
    """The decisions of one worker, from the log that all share."""

    stage: Stage
    halving: Halving
    log: ReportLog

    def look_up(self, claimed: list[Entrant]) -> None:
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

    def judge(self, entrants: list[Entrant]) -> tuple[list[Entrant], dict[Entrant, Standing]]:
        """Store new scores; returns who is done and who stops, by all that is stored. The others go on, or wait."""
        batches, done, stopped = self.report(entrants), list[Entrant](), dict[Entrant, Standing]()
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

    def report(self, ready: list[Entrant]) -> list[list[Report]]:
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

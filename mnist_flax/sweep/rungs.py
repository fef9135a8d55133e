"""The rungs of a halving: what members scored, in the order in which it was stored, and who goes on by that order.

log = ReportLog(queue)
log.append([Report(member=3, epoch=1, accuracy=0.93), ...])  # one batch: the lanes of one worker after an epoch
standing(log.batches(), rung=1, team=teams[3], teams=teams, keep=1 / 3).goes_on
"""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import optuna
from optuna.trial import TrialState

from mnist_flax.analysis.summaries import without_seed
from mnist_flax.errors import InputError
from mnist_flax.sweep.experiment import overrides_key
from mnist_flax.sweep.storage import retry

if TYPE_CHECKING:
    from mnist_flax.sweep.stages import Stage
    from mnist_flax.sweep.trial_queue import TrialQueue


class Report(NamedTuple):
    """What a member scored after one of its epochs, on the evaluation split."""

    member: int  # the number in the name of its directory
    epoch: int  # finished ones
    accuracy: float | None  # None: it diverged on the way there


class Team(NamedTuple):
    """Members that go on or stop together; teams with the same label compete."""

    label: str
    key: str
    size: int


class Standing(NamedTuple):
    """Where a team stands at a rung, among those that had reached it."""

    rank: int  # from 1; beyond `of` if a member diverged
    of: int
    kept: int  # how many of them go on

    @property
    def goes_on(self) -> bool:
        """Whether the team is among those that go on."""
        return self.rank <= self.kept


def standing(
    batches: Iterable[Sequence[Report]], rung: int, team: Team, teams: Mapping[int, Team], keep: float
) -> Standing | None:
    """Where a team stands at a rung: among all in the batches up to the one that completes it; None before that.

    A pure function of the stored order. `teams` has the team of each member. A team's score is the mean over its
    members; one of which a member diverged has none, and comes last.
    """
    found: dict[Team, dict[int, float | None]] = {}
    for batch in batches:
        for member, epoch, accuracy in batch:
            theirs = teams.get(member)
            if epoch == rung and theirs and theirs.label == team.label:
                found.setdefault(theirs, {}).setdefault(member, accuracy)
        if len(found.get(team, {})) >= team.size:
            break
    else:
        return None
    scores = {each: _mean([*values.values()]) for each, values in found.items() if len(values) >= each.size}
    finite, own = [score for score in scores.values() if score is not None], scores[team]
    kept = max(1, math.floor(len(finite) * keep + 1e-9))
    rank = max(len(finite), kept) + 1 if own is None else 1 + sum(score > own for score in finite)
    return Standing(rank, len(finite), kept)


def _mean(values: Sequence[float | None]) -> float | None:
    finite = [value for value in values if value is not None]
    return statistics.fmean(finite) if len(finite) == len(values) else None


def teams_of(stage: "Stage", across: str | None) -> dict[int, Team]:
    """The team of every member that was queued so far, by the number of its directory."""
    sizes = Counter(overrides_key(without_seed(member["overrides"])) for member in stage.members.values() if member)
    teams = {}
    for trial in stage.queue.study.get_trials(deepcopy=False):
        if {"member", "overrides"} <= trial.user_attrs.keys():
            number, overrides = stage.queue.first_number(trial), trial.user_attrs["overrides"]
            key = overrides_key(without_seed(overrides)) if across else f"{number}"
            teams[number] = Team(stage.experiment.method(overrides), key, sizes[key] if across else 1)
    return teams


class ReportLog:
    """Batches of reports in one order for all workers: the trials of an Optuna study, whose numbers are that order."""

    def __init__(self, queue: "TrialQueue") -> None:
        """The log of the queue's members, in the same storage."""
        name = f"{queue.study.study_name}, reports"
        self._study = retry(
            lambda: optuna.create_study(
                storage=queue.storage, study_name=name, direction="maximize", load_if_exists=True
            )
        )

    def append(self, batch: Sequence[Report]) -> None:
        """Store a batch, all of it or nothing."""
        best = max((report.accuracy or 0.0 for report in batch), default=0.0)
        reports = [[*report] for report in batch]
        trial = optuna.trial.create_trial(value=best, user_attrs={"reports": reports}, state=TrialState.COMPLETE)
        self._study.add_trial(trial)

    def batches(self) -> list[list[Report]]:
        """All batches in their order; raises `InputError` for what no worker has stored."""
        found = []
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            reports = trial.user_attrs.get("reports")
            if not (isinstance(reports, list) and all(map(_is_report, reports))):
                raise InputError(f"batch {trial.number} of the sweep's reports is damaged; restore it")
            found.append([Report(*report) for report in reports])
        return found


def _is_report(value: object) -> bool:
    if not (isinstance(value, list) and len(value) == 3):
        return False
    member, epoch, accuracy = value
    is_score = accuracy is None or (type(accuracy) in (int, float) and 0 <= accuracy <= 1)
    return type(member) is int and type(epoch) is int and is_score

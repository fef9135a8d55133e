"""Let a sweep go on when the epochs of its BASE have grown.

    names = [name(2), name(4), name(8)]  # the studies of one stage, that with the fewest epochs first
    growth.check(storage, names, path / "members", experiment.config)
    growth.copy_members(storage, names)

Each number of epochs has its own study, so no result of fewer epochs counts for more, and none is lost. A member keeps
its directory: where that holds a checkpoint, the member goes on from it, and else it is trained from its first step.
"""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from mnist_flax.config import Config
from mnist_flax.errors import InputError
from mnist_flax.sweep.experiment import Overrides
from mnist_flax.sweep.stages import Stage
from mnist_flax.sweep.storage import retry
from mnist_flax.workdir import claim


def check(
    storage: optuna.storages.BaseStorage, names: list[str], path: Path, config: Callable[[Overrides], Config]
) -> None:
    """Raise `InputError` if a member of one stage, whose directories are in `path`, is in use or cannot go on."""
    trials = (
        [] if _trials(storage, names[-1]) else _trials(storage, names[-2])
    )  # they may be in use after the first time
    directories = _directories(trials)
    for trial in trials:
        if {"member", "overrides"} <= trial.user_attrs.keys():
            directory = path / f"{directories[trial.user_attrs['member']]:04d}"
            if claim.is_held(directory):
                raise InputError(f"{directory} is in use by a sweep of fewer epochs; stop it, or wait until it is done")
            claim.check(directory, config(trial.user_attrs["overrides"]))


def copy_members(storage: optuna.storages.BaseStorage, names: list[str]) -> None:
    """Copy each study's members into the next one, as trials that failed; what was copied before is not copied again.

    `TrialQueue.enqueue` takes from such a trial what a search has sampled, and `first_number` the directory.
    """
    for before, now in itertools.pairwise(names):
        trials = _trials(storage, before)
        directories = _directories(trials)
        study = retry(
            lambda now=now: optuna.create_study(
                storage=storage, study_name=now, direction="maximize", load_if_exists=True
            )
        )
        # One copy of each trial: then new members have higher numbers than all directories that are there.
        for trial in trials[len(study.get_trials(deepcopy=False)) :]:
            found: dict[str, Any] = {}
            if key := trial.user_attrs.get("member"):
                found = {"user_attrs": {"member": key, "directory": directories[key]}}
                found |= {"params": trial.params, "distributions": trial.distributions}
            study.add_trial(optuna.trial.create_trial(state=TrialState.FAIL, **found))


def described(stage: Stage) -> str:
    """In words, where the members of a stage start that are not done."""
    saved, others = starts(stage)
    return f"{saved} members of the {stage.name} go on from their last checkpoint, {others} train from their first step"


def starts(stage: Stage) -> tuple[int, int]:
    """How many of a stage's members that are not done have a checkpoint to go on from, and how many have none."""
    done = stage.queue.finished()
    trials = {trial.user_attrs.get("member"): trial for trial in stage.queue.study.get_trials(deepcopy=False)}
    left = [trials.get(key) for key in stage.members if key not in done]
    saved = sum(trial is not None and claim.was_saved(stage.member_dir(trial)) for trial in left)
    return saved, len(left) - saved


def _directories(trials: list[FrozenTrial]) -> dict[str, int]:
    """The number in the name of each member's directory."""
    found: dict[str, int] = {}
    for trial in trials:
        if key := trial.user_attrs.get("member"):
            found.setdefault(key, trial.user_attrs.get("directory", trial.number))
    return found


def _trials(storage: optuna.storages.BaseStorage, name: str) -> list[FrozenTrial]:
    """The trials of a study; [] if there is none of this name."""
    try:
        return optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False)
    except KeyError:
        return []

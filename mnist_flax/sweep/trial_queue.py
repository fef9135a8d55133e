"""The queue from which workers claim the members of a sweep: an Optuna study that many processes and hosts share.

    with TrialQueue(storage, "selection") as queue:
        queue.enqueue({"a": {"overrides": {...}}, "b": {...}})  # members that are queued already stay as they are
        for trial in queue.claim(16):  # no other worker gets them
            queue.finish(trial, values=[0.93, 0.96], value=0.96, attributes={"seconds": 12.3})

A member has a key, and one or more trials: if a trial fails or its worker dies, the member gets another trial, with the
next number. Two processes may do so at once; then the trial with the lower number counts. All processes see the same
numbers, so they agree without a lock. The trial with the lowest number that waits is claimed first.
"""

import contextlib
import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from mnist_flax.sweep.storage import retry

_BEAT_SECONDS, _STALE_SECONDS = 10, 60
_PIECE = 100  # lines of a history
_DONE = (TrialState.COMPLETE, TrialState.PRUNED)
_ALIVE = (TrialState.WAITING, TrialState.RUNNING, *_DONE)
optuna.logging.set_verbosity(optuna.logging.ERROR)


class TrialQueue:
    """One worker's access to one study. While the context is open, a thread reports that the worker is alive."""

    def __init__(self, storage: optuna.storages.BaseStorage, name: str, seed: int = 0) -> None:
        """The study with this name; `seed` decides what a search samples."""
        self.study = retry(
            lambda: optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
        )
        self._seed, self.storage, self.worker = seed, storage, f"{_machine()} {os.getpid()}"
        self._seen: dict[str, tuple[Any, float]] = {}  # each worker's last heartbeat, and when it was first seen here
        self._reported: dict[int, int] = {}  # how many values of each trial
        self._first: dict[str, int] = {}  # the number of each member's first trial
        self._stop = threading.Event()
        self._heartbeat = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "TrialQueue":
        self._heartbeat.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._heartbeat.join()

    def counted(self) -> dict[str, FrozenTrial]:
        """For each member the trial that counts, in the order in which the members were queued first."""
        found: dict[str, FrozenTrial] = {}
        for trial in self.study.get_trials(deepcopy=False, states=_ALIVE):
            if "member" in trial.user_attrs:
                found.setdefault(trial.user_attrs["member"], trial)
        return found

    def objective(self, trial: FrozenTrial) -> float | None:
        """A finished member's accuracy; None if it diverged (`trial.value` is then the last one reported)."""
        return trial.value if trial.state == TrialState.COMPLETE else None

    def finished(self) -> dict[str, FrozenTrial]:
        """The members that are done."""
        return {key: trial for key, trial in self.counted().items() if trial.state in _DONE}

    def running(self) -> list[FrozenTrial]:
        """The members that some worker is training."""
        return [trial for trial in self.counted().values() if trial.state == TrialState.RUNNING]

    def first_number(self, trial: optuna.Trial | FrozenTrial) -> int:
        """The number of the first trial of a trial's member, which names its directory; see `growth` too."""
        key = trial.user_attrs["member"]
        if key not in self._first:
            for each in self.study.get_trials(deepcopy=False):
                self._first.setdefault(each.user_attrs.get("member", ""), each.user_attrs.get("directory", each.number))
        return self._first[key]

    def enqueue(self, members: dict[str, dict[str, Any]]) -> None:
        """Queue every member that is not waiting, running or done yet; `members` maps each key to its attributes."""
        counted = self.counted()
        # A trial that follows a failed one trains what the search sampled for the failed one.
        trials = self.study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        sampled = {trial.user_attrs["member"]: trial.params for trial in trials if trial.params}
        for key, attributes in members.items():
            if key not in counted:
                self.study.enqueue_trial(sampled.get(key, {}), user_attrs={"member": key, **attributes})

    def claim(self, most: int) -> list[optuna.Trial]:
        """Claim up to `most` waiting members, the first queued first: Optuna takes the lowest trial number."""
        claimed: list[optuna.Trial] = []
        while len(claimed) < most and (waiting := self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))):
            asked = [self.study.ask() for _ in waiting[: most - len(claimed)]]
            for trial in asked:
                with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):  # released: it seemed dead
                    trial.set_user_attr("worker", self.worker)
            counted = {trial.number for trial in self.counted().values()}
            claimed += [trial for trial in asked if trial.number in counted]
            # Two processes queued this member at once; or the last waiting trial was taken, and Optuna made a new one.
            self.release([trial for trial in asked if trial.number not in counted])
        if claimed:  # another seed for each claim; the same search again, by one worker, samples the same
            self.study.sampler = optuna.samplers.TPESampler(seed=(claimed[0].number + 2**20 * self._seed) % 2**32)
        return claimed

    def report_accuracies(self, trial: optuna.Trial, values: list[float]) -> None:
        """Record the accuracy after each epoch so far; `values` begin with the first epoch."""
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):  # taken over: `finish` returns False
            for epoch in range(self._reported.get(trial.number, 0), len(values)):
                trial.report(values[epoch], epoch + 1)
        self._reported[trial.number] = len(values)

    def finish(self, trial: optuna.Trial, values: list[float], value: float | None, attributes: dict[str, Any]) -> bool:
        """Finish a claimed member; return False if another worker has taken it over because this one seemed dead.

        `values` are the accuracies after each epoch, `value` is the last one, or None if the member diverged, which the
        sampler takes for worse than any that is done; `attributes` are stored with the trial.
        """
        state = TrialState.PRUNED if value is None else TrialState.COMPLETE
        try:
            for name, content in attributes.items():
                for index, piece in enumerate(_pieces(content)):
                    trial.set_user_attr(f"{name} {index}" if index else name, piece)
            self.report_accuracies(trial, values)
            return self.study.tell(trial, value, state, skip_if_finished=True).state == state
        except optuna.exceptions.UpdateFinishedTrialError:
            return False

    def logarithmic(self) -> dict[str, bool]:
        """Of each number that the search samples: whether on a logarithmic scale."""
        sampled = [trial.distributions for trial in self.study.get_trials(deepcopy=False)]
        kinds = optuna.distributions.FloatDistribution, optuna.distributions.IntDistribution
        return {name: d.log for distributions in sampled for name, d in distributions.items() if isinstance(d, kinds)}

    def attribute(self, trial: FrozenTrial, name: str) -> Any:
        """One of the `attributes` with which a trial was finished."""
        content, index = trial.user_attrs[name], 1
        while (more := f"{name} {index}") in trial.user_attrs:
            content, index = content + trial.user_attrs[more], index + 1
        return content

    def importances(self) -> dict[str, float]:
        """The share of each hyperparameter in the objective's variance; {} if too few trials are done to tell."""
        try:
            return optuna.importance.get_param_importances(self.study)
        except (ValueError, RuntimeError):
            return {}

    def release(self, trials: Sequence[optuna.Trial | FrozenTrial]) -> None:
        """Fail those trials that are not done; the next `enqueue` queues their members again."""
        for trial in trials:
            self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)

    def retake_lost(self, is_held: Callable[[FrozenTrial], bool]) -> None:
        """Release the members of workers that seem dead, except where `is_held` says that the directory is in use."""
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        others = {_worker_of(trial) for trial in running} - {self.worker}
        dead = {worker for worker in others if self._is_dead(worker)}
        lost = [trial for trial in running if _worker_of(trial) in dead]
        self.release([trial for trial in lost if not ("member" in trial.user_attrs and is_held(trial))])

    def _is_dead(self, worker: str) -> bool:
        machine, _, pid = worker.rpartition(" ")
        if machine == _machine() and not _runs(int(pid)):
            return True
        beat = self.study.user_attrs.get(f"beat of {worker}")
        seen, since = self._seen.get(worker, (None, 0.0))
        if worker not in self._seen or seen != beat:  # compare times of this clock only: clocks of hosts differ
            self._seen[worker] = beat, time.monotonic()
            return False
        return time.monotonic() - since > _STALE_SECONDS

    def _beat(self) -> None:
        for count in itertools.count():
            # The main thread reports a lasting fault of the storage, since it meets it too.
            with contextlib.suppress(OSError, SQLAlchemyError, optuna.exceptions.StorageInternalError):
                self.study.set_user_attr(f"beat of {self.worker}", count)
            if self._stop.wait(_BEAT_SECONDS):
                return


def _pieces(content: Any) -> list[Any]:
    """A long list as several, since some databases hold at most 64 kB in a field."""
    if not (isinstance(content, list) and len(content) > _PIECE):
        return [content]
    return [content[first : first + _PIECE] for first in range(0, len(content), _PIECE)]


def _worker_of(trial: FrozenTrial) -> str:
    # A trial has no worker between `ask` and `set_user_attr`; if the process is killed there, it never has one.
    return trial.user_attrs.get("worker", f"of trial {trial.number}, unknown")


def _machine() -> str:
    """A name for this host since its last boot, and for this container on it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
        return f"{socket.gethostname()} {boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return socket.gethostname()


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)  # it runs as another user
    return True

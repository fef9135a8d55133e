"""Estimate how long a sweep still takes: all its stages, at the pace of all its workers.

remaining = Remaining(sweep, dataset.examples)
remaining()  # seconds, or None before the workers have finished a second epoch
"""

import time

from mnist_flax.config import Config
from mnist_flax.data import splits
from mnist_flax.sweep.adapt import expected_epochs
from mnist_flax.sweep.stages import Sweep


class Remaining:
    """The time left, from the training examples that all workers have gone through; all members are equally fast."""

    def __init__(self, sweep: Sweep, examples: dict[str, int]) -> None:
        self._sweep, self._examples = sweep, examples
        self._before = self._work()[1]
        self._since: float | None = None  # when the first epoch was done: what came before was compiling, for the most

    def __call__(self) -> float | None:
        """Seconds; None while nothing is known."""
        (left, trained), now = self._work(), time.monotonic()
        if self._since is None and trained > self._before:
            self._before, self._since = trained, now
        if self._since is None or trained <= self._before:
            return None
        return left * (now - self._since) / (trained - self._before)

    def _work(self) -> tuple[float, float]:
        """The examples that are left, and those that workers have trained on, but for what they restored."""
        selection, experiment = self._sweep.selection(), self._sweep.experiment
        stages, left, trained = [selection], 0.0, 0.0
        if experiment.final_seeds and not selection.left():
            stages.append(self._sweep.final())
        elif experiment.final_seeds:
            methods = {experiment.method(overrides) for overrides in experiment.grid}
            left = max(1, len(methods)) * experiment.final_seeds * self._examples_of(experiment.final_config({}))
        for stage in stages:
            config, trials = stage.config({}), stage.queue.counted()
            adapt = experiment.adapt if stage is selection else None
            size, epochs = self._examples_of(config) / config.epochs, config.epochs
            for trial in map(trials.get, stage.members):
                done = len(trial.intermediate_values) if trial else 0
                is_finished = trial is not None and trial.state.is_finished()
                left += 0.0 if is_finished else expected_epochs(adapt, done, epochs) * size
                done = epochs if is_finished and not adapt else done
                trained += (done - (trial.user_attrs.get("restored_epochs", 0) if trial else 0)) * size
        return max(left, 0.0), trained

    def _examples_of(self, config: Config) -> int:
        """The examples that a member trains on, those of all epochs."""
        parts = splits.ranges(config.train_split, self._examples)
        return config.epochs * sum(stop - start for _, start, stop in parts)

"""What is compiled: everything that a step knows besides its arrays, in one hashable value.

    program = make_program(config, dataset_info)
    state, metrics = train_step(state, hparams, batch, program=program)

It is the one static argument of every compiled function, so a static setting cannot be forgotten on the way to a sweep,
an export or a resumed run; and hyperparameters, which are arrays, cannot be read from it by mistake.
"""

import functools
from dataclasses import dataclass
from typing import Any

import optax
from jax import Array

from mnist_flax.config import Config, Hyperparams, StaticConfig
from mnist_flax.model import Network, make_model
from mnist_flax.optimizer import l2_sum, make_optimizer, schedule_factor


@dataclass(frozen=True)
class Program:
    """The static settings, and the sizes that follow from the data; equal programs share one compilation."""

    static: StaticConfig
    image_shape: tuple[int, ...]  # (H, W, C)
    num_classes: int
    steps_per_epoch: int  # the last, short batch included

    @functools.cached_property
    def model(self) -> Network:
        """The network."""
        return make_model(self.static, self.num_classes)

    @property
    def total_steps(self) -> int:
        """Updates of the whole run."""
        return self.static.epochs * self.steps_per_epoch

    def optimizer(self, hparams: Hyperparams) -> optax.GradientTransformation:
        """The optax chain; `hparams` may be traced."""
        return make_optimizer(hparams, self.static, self.model, self.steps_per_epoch)

    def l2_sum(self, params: Any) -> Array:
        """What the `l2` weight multiplies: []."""
        return l2_sum(params, self.static, self.model)

    def schedule_factor(self, step: Any) -> Any:
        """The learning rate's factor after `step` finished updates, on the host for numbers and numpy arrays."""
        return schedule_factor(step, self.static, self.steps_per_epoch)


def make_program(config: Config, dataset_info: dict[str, Any]) -> Program:
    """The program of a run, from its config and its data's image_shape, class_names and train_examples."""
    steps_per_epoch = -(-dataset_info["train_examples"] // config.batch_size)
    image_shape, num_classes = tuple(dataset_info["image_shape"]), len(dataset_info["class_names"])
    return Program(config.static(), image_shape, num_classes, steps_per_epoch)

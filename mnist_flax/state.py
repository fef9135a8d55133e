"""What training carries from step to step, and how it begins.

    state = init_state(hparams, program=program)
    variables = inference_variables(state)

Nothing random is carried: every key is a function of (seed, stream, step), so resuming needs only the step.
"""

import dataclasses
import enum
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mnist_flax.config import Hyperparams
from mnist_flax.optimizer import WeightAverage
from mnist_flax.program import Program
from mnist_flax.settings import settings_of

jax.tree_util.register_dataclass(
    Hyperparams, data_fields=[field.name for field in dataclasses.fields(Hyperparams)], meta_fields=[]
)


@enum.unique
class Stream(enum.IntEnum):
    """The random streams inside compiled code; the numbers must never change."""

    PARAMS = 0
    DROPOUT = 1
    NOISE = 2
    ADVERSARIAL = 3
    DISTORTIONS = 4


@flax.struct.dataclass
class TrainState:
    """Arrays only; its fields are file format."""

    step: Array  # int32 [], finished updates
    params: Any
    batch_stats: Any
    opt_state: Any


def as_arrays(hparams: Hyperparams) -> Hyperparams:
    """Python numbers to [] arrays: float32, and uint32 for whole numbers."""
    kinds = {int: np.uint32, float: np.float32}
    table = settings_of(Hyperparams)
    arrays: dict[str, Any] = {name: np.asarray(getattr(hparams, name), kinds[s.kind]) for name, s in table.items()}
    return Hyperparams(**arrays)


def stream_key(seed: Array | int, stream: Stream, step: Array | int) -> Array:
    """The key of a random stream at a step."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), int(stream)), step)


def init_state(hparams: Hyperparams, *, program: Program) -> TrainState:
    """The state before the first step; pure, so that it can be jitted, vmapped over `hparams` and `eval_shape`d."""
    images = jnp.zeros((1, *program.image_shape), jnp.uint8)
    variables = program.model.init(stream_key(hparams.seed, Stream.PARAMS, 0), images)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=program.optimizer(hparams).init(variables["params"]),
    )


def inference_variables(state: TrainState) -> dict[str, Any]:
    """What `model.apply` takes to evaluate, predict and export; nothing else decides which variables these are."""
    *_, last = state.opt_state
    params = last.average if isinstance(last, WeightAverage) else state.params
    return {"params": params, "batch_stats": state.batch_stats}

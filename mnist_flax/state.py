"""What training carries from step to step, how it begins, and the optimiser.

    make_tx = MakeTx(schedule="constant", warmup_steps=0, total_steps=1876, l2_layers=(2,), ...)
    state = init_state(hparams, model=model, make_tx=make_tx, image_shape=(28, 28, 1))

Nothing random is carried: every key is a function of (seed, stream, step), so resuming needs only the step.
"""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from mnist_flax.config import Config, Hyperparams
from mnist_flax.model import MLP, kernels_of

jax.tree_util.register_dataclass(
    Hyperparams, data_fields=[field.name for field in dataclasses.fields(Hyperparams)], meta_fields=[]
)

_STREAMS = {"params": 0, "dropout": 1}  # numbers, not names: they must never change


@flax.struct.dataclass
class TrainState:
    """Arrays only. `step` counts finished updates."""

    step: Array  # int32 []
    params: Any
    batch_stats: Any
    opt_state: Any


@dataclass(frozen=True)
class MakeTx:
    """`make_tx(hparams)`: the optimiser of a step. Hashable, so that equal settings share one compiled program.

    Attributes:
      schedule: what the learning rate does after the warm-up; the decays reach 0 right after the last step.
      warmup_steps: steps over which the learning rate rises linearly.
      total_steps: steps of the whole run.
      l2_layers: layers whose kernel carries the L2 penalty.
      max_norm_layers: layers whose kernel is held to `max_norm`.
      epsilon: Adam's, outside the root.
    """

    schedule: Literal["constant", "linear", "cosine"]
    warmup_steps: int
    total_steps: int
    l2_layers: tuple[int, ...]
    max_norm_layers: tuple[int, ...]
    epsilon: float

    def __call__(self, hparams: Hyperparams) -> optax.GradientTransformation:
        """Adam (Kingma & Ba, ICLR 2015) on the gradient of cross-entropy + l2 * sum(kernel^2).

        `add_decayed_weights(2 * l2)` in front of Adam is exactly the penalty's gradient; behind it, it would be AdamW.
        """
        unit = self.unit_schedule()
        constraint = [max_norm(hparams.max_norm, self.max_norm_layers)] if self.max_norm_layers else []
        return optax.chain(
            optax.add_decayed_weights(2 * hparams.l2, mask=partial(kernels_of, layers=self.l2_layers)),
            optax.scale_by_adam(b1=hparams.b1, b2=hparams.b2, eps=self.epsilon),
            optax.scale_by_schedule(lambda count: -hparams.learning_rate * unit(count)),
            *constraint,
        )

    def unit_schedule(self) -> optax.Schedule:
        """The learning rate's factor, from 0 to 1, after `count` finished updates."""
        decay_steps = max(self.total_steps - self.warmup_steps, 1)
        after = {
            "constant": optax.constant_schedule(1.0),
            "linear": optax.linear_schedule(1.0, 0.0, decay_steps),
            "cosine": optax.cosine_decay_schedule(1.0, decay_steps),
        }[self.schedule]
        if not self.warmup_steps:
            return after
        # From 1/(w+1), not 0: the first step must learn something too.
        warmup = optax.linear_schedule(1 / (self.warmup_steps + 1), 1.0, self.warmup_steps)
        return optax.join_schedules([warmup, after], [self.warmup_steps])


def max_norm(limit: Array | float, layers: tuple[int, ...]) -> optax.GradientTransformation:
    """Shorten updates so that no unit of `layers` has incoming weights of a norm above `limit` after them.

    The projection of Srivastava et al., JMLR 15, 2014, section 5.1; last in a chain.
    """

    def shorten(update: Array, kernel: Array) -> Array:
        target = kernel + update  # [in, out]
        norms = jnp.linalg.norm(target, axis=0, keepdims=True)
        return target * jnp.minimum(1, limit / jnp.maximum(norms, 1e-30)) - kernel

    constraint = optax.stateless(lambda updates, params: jax.tree.map(shorten, updates, params))
    return optax.masked(constraint, partial(kernels_of, layers=layers))


def make_model(config: Config, num_classes: int) -> MLP:
    """The network that a config describes."""
    return MLP(config.widths, config.batch_norm_layers, config.l2_layers, num_classes, config.precision)


def make_optimizer(config: Config, steps_per_epoch: int) -> MakeTx:
    """The `make_tx` that a config describes, its durations in steps."""
    return MakeTx(
        schedule=config.schedule,
        warmup_steps=round(config.warmup_epochs * steps_per_epoch),
        total_steps=config.epochs * steps_per_epoch,
        l2_layers=config.l2_layers,
        max_norm_layers=config.max_norm_layers,
        epsilon=config.adam_epsilon,
    )


def as_arrays(hparams: Hyperparams) -> Hyperparams:
    """Python numbers to [] arrays: float32, and uint32 for the seed."""
    values: dict[str, Any] = {
        name: np.asarray(value, np.uint32 if name == "seed" else np.float32)
        for name, value in dataclasses.asdict(hparams).items()
    }
    return Hyperparams(**values)


def stream_key(seed: Array | int, stream: Literal["params", "dropout"], step: Array | int) -> Array:
    """The key of a random stream at a step."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _STREAMS[stream]), step)


def init_state(hparams: Hyperparams, *, model: MLP, make_tx: MakeTx, image_shape: tuple[int, ...]) -> TrainState:
    """The state before the first step; pure, so that it can be jitted, vmapped over `hparams` and `eval_shape`d."""
    variables = model.init(stream_key(hparams.seed, "params", 0), jnp.zeros((1, *image_shape), jnp.uint8))
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=make_tx(hparams).init(params),
    )

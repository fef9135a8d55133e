"""The optimizer as an optax chain: the L2 term, Adam, the learning rate's schedule, max-norm, averaged weights.

tx = make_optimizer(hparams, static, model, steps_per_epoch)
updates, opt_state = tx.update(grads, opt_state, params)

The positions in the chain are file format: a checkpoint's optimizer state has the same structure. New state goes last.
"""

import math
from collections.abc import Collection
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from mnist_flax.config import Hyperparams, StaticConfig
from mnist_flax.model import Network


def make_optimizer(
    hparams: Hyperparams, static: StaticConfig, model: Network, steps_per_epoch: int
) -> optax.GradientTransformation:
    """Adam (Kingma & Ba, ICLR 2015) on the gradient of cross-entropy + l2 * sum(kernel^2).

    `add_decayed_weights(2 * l2)` before Adam is exactly the penalty's gradient; after Adam it would be AdamW.
    """

    def minus_learning_rate(count: Any) -> Array:
        return -hparams.learning_rate * schedule_factor(count, static, steps_per_epoch)

    of = partial(kernel_mask, model)
    last = [max_norm(hparams.max_norm, partial(of, static.max_norm_layers))] if static.max_norm_layers else []
    last += [weight_average(hparams.average_decay)] if static.average_weights else []
    return optax.chain(
        optax.add_decayed_weights(2 * hparams.l2, mask=partial(of, static.l2_layers)),
        optax.scale_by_adam(b1=hparams.b1, b2=hparams.b2, eps=static.adam_epsilon),
        optax.scale_by_schedule(minus_learning_rate),
        *last,
    )


def l2_sum(params: Any, static: StaticConfig, model: Network) -> Array:
    """sum(kernel^2) over the kernels of `l2_layers`, without 1/2: [], to be multiplied by the `l2` weight."""
    total = jnp.zeros(())
    for layer in static.l2_layers:
        kernel = params
        for name in model.kernel_path(layer):
            kernel = kernel[name]
        total = total + jnp.sum(jnp.square(kernel))
    return total


def kernel_mask(model: Network, layers: Collection[int], params: Any) -> Any:
    """A tree like `params`, True at the kernels of `layers` alone.

    It goes by path, not by ndim: the leaves of a population have one more axis.
    """
    wanted = {model.kernel_path(layer) for layer in layers}
    return jax.tree_util.tree_map_with_path(lambda path, _: tuple(key.key for key in path) in wanted, params)


def schedule_factor(step: Any, static: StaticConfig, steps_per_epoch: int) -> Any:
    """The learning rate's factor, from 0 to 1, after `step` finished updates; a decay reaches 0 after the last one.

    `step` is int [...], the factor float32 [...]. A JAX array is computed on its device; numbers and numpy arrays never
    leave the host.
    """
    xp: Any = jnp if isinstance(step, Array) else np
    warmup_steps = round(static.warmup_epochs * steps_per_epoch)
    decay_steps = np.float32(max(static.epochs * steps_per_epoch - warmup_steps, 1))
    done = xp.clip(xp.asarray(step - warmup_steps, "float32"), 0, decay_steps)
    match static.schedule:
        case "constant":
            factor = xp.ones_like(done)
        case "linear":
            factor = 1 - done / decay_steps
        case "cosine":
            factor = 0.5 * (1 + xp.cos(np.float32(math.pi) * done / decay_steps))
    if not warmup_steps:
        return factor
    # From 1 / (warmup_steps + 1), not 0: the first step must learn something too.
    missing = 1 - xp.clip(xp.asarray(step, "float32"), 0, warmup_steps) / np.float32(warmup_steps)
    rising = np.float32(1 / (warmup_steps + 1) - 1) * missing + 1
    return xp.where(step < warmup_steps, rising, factor)


def max_norm(limit: Array | float, mask: Any) -> optax.GradientTransformation:
    """Shorten updates so that no unit has incoming weights of a norm above `limit` after them.

    The projection of Srivastava et al., JMLR 15, 2014, section 5.1; last in a chain. `mask` picks the kernels.
    """

    def shorten(update: Array, kernel: Array) -> Array:
        target = kernel + update  # [in, out]
        norms = jnp.linalg.norm(target, axis=0, keepdims=True)
        return target * jnp.minimum(1, limit / jnp.maximum(norms, 1e-30)) - kernel

    constraint = optax.stateless(lambda updates, params: jax.tree.map(shorten, updates, params))
    return optax.masked(constraint, mask)


class WeightAverage(NamedTuple):
    """The state of `weight_average`."""

    updates: Array  # int32 [], finished ones
    average: Any  # like the parameters


def weight_average(decay: Array | float) -> optax.GradientTransformation:
    """Keep an exponential average of the parameters after each update (Polyak & Juditsky, SICON 1992); last in a chain.

    After t updates, those of step i weigh decay^(t - i), divided by the sum of all weights: the first weights, before
    any update, are not in it.
    """

    def init(params: Any) -> WeightAverage:
        # Copies: training donates its state, and no array may be in it twice.
        return WeightAverage(jnp.zeros((), jnp.int32), jax.tree.map(jnp.array, params))

    def update(updates: Any, state: WeightAverage, params: Any) -> tuple[Any, WeightAverage]:
        count = state.updates + 1
        share = (1 - decay) / (1 - decay**count)  # 1 at the first update
        following = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda old, new: old + share * (new - old), state.average, following)
        return updates, WeightAverage(count, average)

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]

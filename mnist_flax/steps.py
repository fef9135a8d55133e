"""The two pure functions that everything else runs: one training step, one evaluation step.

    state, metrics = train_step(state, hparams, take(split, indices), program=program)

Positional arguments are pytrees of arrays, keyword-only arguments are static. Nothing here is jitted: `compiled`
applies jit, scan, vmap, donation and sharding. Shapes are per member: B examples a batch.
"""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax import Array

from mnist_flax.config import Hyperparams
from mnist_flax.metrics import Metrics
from mnist_flax.program import Program
from mnist_flax.state import Stream, TrainState, inference_variables, stream_key

GRADIENT_NORM_EVERY = 10
"""In steps. Measuring the norm reads the whole gradient again, which takes 5 % of a step."""


class Batch(NamedTuple):
    """A batch of one size; where `mask` is False it is padding, which counts nowhere."""

    images: Array  # uint8 [B, H, W, C]
    labels: Array  # int32 [B]
    mask: Array  # bool [B]


def take(split: tuple[Array, Array], indices: Array) -> Batch:
    """Gather int32 [B] `indices` from a split's images and labels; -1 is padding."""
    images, labels = split
    return Batch(images[indices], labels[indices], indices >= 0)


def train_step(
    state: TrainState, hparams: Hyperparams, batch: Batch, *, program: Program
) -> tuple[TrainState, Metrics]:
    """One update.

    Returns:
      The next state, and what the batch counted before the update, dropout on.
    """
    dropout_key = stream_key(hparams.seed, Stream.DROPOUT, state.step)
    (_, (sums, batch_stats)), grads = jax.value_and_grad(data_loss, has_aux=True)(
        state.params, state.batch_stats, hparams, batch, dropout_key, program=program
    )
    updates, opt_state = program.optimizer(hparams).update(grads, state.opt_state, state.params)
    measured = state.step % GRADIENT_NORM_EVERY == 0
    # Not a constant 0: under `shard_map` both branches must be values that vary over the devices.
    norm = jax.lax.cond(measured, optax.tree.norm, lambda _: jnp.zeros_like(sums[0]), grads)
    metrics = _metrics(sums, state.params, hparams, batch, program, norm)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, batch_stats, opt_state), metrics


def eval_step(state: TrainState, hparams: Hyperparams, batch: Batch, *, program: Program) -> tuple[Metrics, Array]:
    """What the network scores on a batch, and its logits [B, C]: running statistics, no dropout, no label smoothing."""
    variables = inference_variables(state)
    logits = cast(Array, program.model.apply(variables, batch.images))
    sums = _sums(logits, batch, jnp.zeros(()))
    return _metrics(sums, variables["params"], hparams, batch, program, jnp.zeros(())), logits


def data_loss(
    params: Any, batch_stats: Any, hparams: Hyperparams, batch: Batch, dropout_key: Array, *, program: Program
) -> tuple[Array, tuple[tuple[Array, Array], Any]]:
    """The mean cross-entropy [] of a training batch; with it, its sums and the next BatchNorm statistics.

    The L2 term is not in here: the optimizer adds its gradient, and the metrics its value.
    """
    logits, updated = program.model.apply(
        {"params": params, "batch_stats": batch_stats},
        batch.images,
        dropout_rate=hparams.dropout_rate,
        mask=batch.mask,
        train=True,
        rngs={"dropout": dropout_key},
        mutable=["batch_stats"],
    )
    sums = _sums(logits, batch, hparams.label_smoothing)
    return sums[0] / jnp.sum(batch.mask), (sums, updated.get("batch_stats", {}))


def _sums(logits: Array, batch: Batch, label_smoothing: Array | float) -> tuple[Array, Array]:
    """Summed cross-entropy against targets (1 - s) * one-hot + s / C (Szegedy et al., CVPR 2016), and correct count."""
    log_probabilities = jax.nn.log_softmax(logits)  # [B, C]
    label_log_probabilities = jnp.take_along_axis(log_probabilities, batch.labels[:, None], axis=1)[:, 0]  # [B]
    smoothed = (1 - label_smoothing) * label_log_probabilities + label_smoothing * jnp.mean(log_probabilities, axis=1)
    correct = (jnp.argmax(logits, axis=1) == batch.labels) & batch.mask
    return -jnp.sum(jnp.where(batch.mask, smoothed, 0)), jnp.sum(correct, dtype=jnp.int32)


def _metrics(
    sums: tuple[Array, Array], params: Any, hparams: Hyperparams, batch: Batch, program: Program, gradient_norm: Array
) -> Metrics:
    examples = jnp.sum(batch.mask, dtype=jnp.int32)
    penalty = hparams.l2 * program.l2_sum(params)
    return Metrics(sums[0], penalty * examples, sums[1], examples, gradient_norm)

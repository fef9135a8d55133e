"""The two pure functions that everything else runs: one training step, one evaluation step.

    state, metrics = train_step(state, hparams, take(split, indices), program=program)

Positional arguments are pytrees of arrays, keyword-only arguments are static. Nothing here is jitted: `compiled`
applies jit, scan, vmap, donation and sharding. Shapes are per member: B examples a batch.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax import Array

from mnist_flax.config import Hyperparams
from mnist_flax.distortions import distort
from mnist_flax.metrics import Metrics
from mnist_flax.model import gaussian, in_0_to_1
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
    (_, (sums, batch_stats)), grads = jax.value_and_grad(data_loss, has_aux=True)(
        state.params, state.batch_stats, hparams, batch, state.step, program=program
    )
    updates, opt_state = program.optimizer(hparams).update(grads, state.opt_state, state.params)
    measured = state.step % GRADIENT_NORM_EVERY == 0
    # Not a constant 0: under `shard_map` both branches must be values that vary over the devices.
    nothing = jnp.zeros_like(sums[0])
    norm = jax.lax.cond(measured, lambda tree: optax.tree.norm(tree).astype(nothing.dtype), lambda _: nothing, grads)
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
    params: Any, batch_stats: Any, hparams: Hyperparams, batch: Batch, step: Array | int, *, program: Program
) -> tuple[Array, tuple[tuple[Array, Array], Any]]:
    """What a training batch adds to the loss: []; with it, its summed scores and the next BatchNorm statistics.

    That is the mean cross-entropy and, where it is on, `adversarial_weight` times `virtual_adversarial_loss`, which is
    not among the scores. The L2 term is not in here: the optimizer adds its gradient, and the metrics its value.
    """
    key = partial(stream_key, hparams.seed, step=step)
    images, kind = batch.images, program.static.distort
    if kind != "none":
        images = distort(key(Stream.DISTORTIONS), in_0_to_1(images), hparams, kind=kind)

    def network(images: Array) -> tuple[Array, Any]:
        return program.model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            dropout_rate=hparams.dropout_rate,
            noise=hparams.noise,
            mask=batch.mask,
            train=True,
            rngs={"dropout": key(Stream.DROPOUT), "noise": key(Stream.NOISE)},
            mutable=["batch_stats"],
        )

    if not program.static.virtual_adversarial:
        logits, updated = network(images)
        loss = jnp.zeros(())
    else:
        images = in_0_to_1(images)
        logits, pull, updated = jax.vjp(network, images, has_aux=True)
        start = gaussian(key(Stream.ADVERSARIAL), images.shape)
        change = hparams.adversarial_radius * adversarial_direction(pull, logits, start, batch.mask)
        # With the same noise, and the same units dropped. What this pass makes of BatchNorm's statistics is dropped.
        changed, _ = network(images + jax.lax.stop_gradient(change))
        loss = hparams.adversarial_weight * _divergence(logits, changed, batch.mask)
    sums = _sums(logits, batch, hparams.label_smoothing)
    return sums[0] / jnp.sum(batch.mask) + loss, (sums, updated.get("batch_stats", {}))


def adversarial_direction(pull: Callable[[Array], tuple[Array]], logits: Array, start: Array, mask: Array) -> Array:
    """The direction [B, H, W, C], of length 1, in which each image changes its prediction most, by one power iteration.

    Virtual adversarial training, Miyato et al., TPAMI 2018, section 3.3: from `start`, a random direction, to its
    product with the Hessian of KL(p || p(changed)) where nothing has changed. The gradient is 0 there, so the Hessian
    is J^T (diag(p) - p p^T) J with the Jacobian J of the logits: exact, where the paper takes a finite difference.
    `pull` is the product with J^T, as `jax.vjp` gives it. Padding, where `mask` is False, turns nobody's direction.
    """
    (pushed,) = jax.linear_transpose(lambda u: pull(u)[0], logits)(_unit(start))  # J d, [B, C]
    p = jax.nn.softmax(logits)
    # (diag(p) - p p^T) v, without the difference of two numbers that are nearly equal where a prediction is certain
    differences = pushed[:, :, None] - pushed[:, None, :]
    turned = p * jnp.sum(p[:, None, :] * differences, axis=2)
    return _unit(pull(jnp.where(mask[:, None], turned, 0))[0])


def _unit(x: Array) -> Array:
    """Each of [B, ...] with length 1, or 0; very small ones are not taken for 0."""
    axes = tuple(range(1, x.ndim))
    x = x / jnp.maximum(jnp.max(jnp.abs(x), axes, keepdims=True), jnp.finfo(x.dtype).tiny)
    return x / jnp.maximum(jnp.sqrt(jnp.sum(x * x, axes, keepdims=True)), jnp.finfo(x.dtype).tiny)


def _divergence(logits: Array, changed: Array, mask: Array) -> Array:
    """The mean of KL(p || q) over the examples that count, p a constant: []."""
    p, log_p = jax.lax.stop_gradient((jax.nn.softmax(logits), jax.nn.log_softmax(logits)))
    each = jnp.sum(p * (log_p - jax.nn.log_softmax(changed)), axis=1)
    return jnp.sum(jnp.where(mask, each, 0)) / jnp.sum(mask)


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

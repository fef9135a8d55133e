"""The tutorial's network as the textbook Flax loop, tf.data batches and a jitted call a step: one seed, one JSON line.

    python experiments/benchmarks/peers/flax_loop.py --seed 0

The loop of Flax's own MNIST example. Needs the bench extra.
"""

import argparse
import json
import time
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tensorflow as tf
from files import read
from flax.training import train_state


class Network(nn.Module):
    """784-512-512-10."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Logits [B, 10]."""
        init = nn.initializers.glorot_uniform()
        x = nn.relu(nn.Dense(512, kernel_init=init)(x))
        x = nn.Dropout(0.2, deterministic=not train)(x)
        x = nn.Dense(512, kernel_init=init)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.99, epsilon=1e-3)(x))
        x = nn.Dropout(0.2, deterministic=not train)(x)
        return nn.Dense(10, kernel_init=init)(x)


class State(train_state.TrainState):
    """With what BatchNorm carries."""

    batch_stats: Any


@jax.jit
def train_step(state: State, images: jax.Array, labels: jax.Array, key: jax.Array) -> tuple[State, jax.Array]:
    """One update."""

    def loss_of(params: Any) -> tuple[jax.Array, Any]:
        logits, updates = state.apply_fn(
            {"params": params, "batch_stats": state.batch_stats},
            images,
            True,
            rngs={"dropout": jax.random.fold_in(key, state.step)},
            mutable=["batch_stats"],
        )
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss + 0.001 * jnp.sum(params["Dense_1"]["kernel"] ** 2), updates

    (loss, updates), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads, batch_stats=updates["batch_stats"]), loss


@jax.jit
def hits_of(state: State, images: jax.Array, labels: jax.Array) -> jax.Array:
    """How many are right."""
    logits = state.apply_fn({"params": state.params, "batch_stats": state.batch_stats}, images, False)
    return jnp.sum(jnp.argmax(logits, 1) == labels)


def main() -> None:
    """Train and print the test accuracy after each epoch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=4)
    args = parser.parse_args()

    tf.config.experimental.set_visible_devices([], "GPU")
    tf.random.set_seed(args.seed)
    train, test = read("train"), read("t10k")
    batches = tf.data.Dataset.from_tensor_slices(train).shuffle(60_000).batch(128).prefetch(2)
    tests = tf.data.Dataset.from_tensor_slices(test).batch(1000).prefetch(2)
    model, key = Network(), jax.random.key(args.seed)
    variables = model.init(key, jnp.zeros((1, 784)), False)
    state = State.create(
        apply_fn=model.apply,
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        tx=optax.adam(1e-3, eps=1e-7),
    )
    seconds, accuracy = [], []
    for _ in range(args.epochs):
        began, losses = time.perf_counter(), []
        for images, labels in batches.as_numpy_iterator():
            state, loss = train_step(state, images, labels, key)
            losses.append(loss)
        jax.block_until_ready(losses)
        seconds.append(round(time.perf_counter() - began, 4))
        hits = [hits_of(state, images, labels) for images, labels in tests.as_numpy_iterator()]
        accuracy.append(float(np.sum(hits)) / len(test[1]))
    result = {
        "program": "flax-textbook",
        "seed": args.seed,
        "accuracy": accuracy,
        "epoch_seconds": seconds,
        "versions": {"flax": flax.__version__, "jax": jax.__version__, "tensorflow": tf.__version__},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

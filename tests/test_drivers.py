"""One step, four drivers, in float64: the loop over batches, the scan, eight devices, a population. (Two processes: see
`process/test_distributed`.)"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY, Tiny

from mnist_flax import compiled
from mnist_flax.config import Hyperparams
from mnist_flax.data.batches import Split, epoch_batches
from mnist_flax.placement import data_mesh, replicate, shard_batches, shard_members
from mnist_flax.state import TrainState, inference_variables
from mnist_flax.steps import take, train_step

CONFIG = dataclasses.replace(
    TINY, widths=(16, 12), l2_layers=(2, 3), max_norm_layers=(1,), schedule="cosine", noise_at="both",
    distort="both", virtual_adversarial=True, average_weights=True, precise_batch_norm=True,
)  # fmt: skip
HPARAMS = [
    Hyperparams(max_norm=0.9, noise=0.3),
    Hyperparams(max_norm=1.1, noise=0.1, l2=0.01, dropout_rate=0.4, seed=3, label_smoothing=0.1, average_decay=0.9,
                adversarial_weight=2.0, adversarial_radius=1.0),
]  # fmt: skip
Result = tuple[TrainState, np.ndarray, np.ndarray]  # the state, cross-entropy by step, logits


def wide(tree: object) -> object:
    """Its floating-point leaves in float64."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, float) if leaf.dtype.kind == "f" else jnp.asarray(leaf), tree)


@pytest.fixture(scope="module")
def split() -> Split:
    """Of 200 images: 12 batches of 16 and a short one of 8."""
    rng = np.random.default_rng(0)
    return Split(rng.integers(0, 256, (200, 28, 28, 1), np.uint8), rng.integers(0, 10, 200, np.int32))


@pytest.fixture(scope="module")
def drivers(split: Split) -> dict[str, list[Result]]:
    """What every driver makes of both members, by the driver's name."""
    with jax.enable_x64(True):
        tiny = Tiny(CONFIG)
        hparams = [wide(tiny.hparams(**dataclasses.asdict(h))) for h in HPARAMS]
        orders = [epoch_batches(200, 16, h.seed, epoch=0) for h in HPARAMS]
        init = lambda h: wide(jax.jit(tiny.init)(h))  # noqa: E731
        measure = partial(compiled.measure_batch_norm, program=tiny.program)

        def logits(state: TrainState) -> np.ndarray:
            local = jax.tree.map(np.asarray, inference_variables(state))
            return np.asarray(tiny.model.apply(local, split.images))

        def loop(h: Hyperparams, order: np.ndarray) -> Result:
            state, losses = init(h), []
            step = jax.jit(partial(train_step, program=tiny.program))
            for row in order:
                state, metrics = step(state, h, take(tuple(map(jnp.asarray, split)), row))
                losses.append(metrics.cross_entropy)
            state = state.replace(batch_stats=measure(state, tuple(split), order))
            return state, np.asarray(losses), logits(state)

        def scan(h: Hyperparams, order: np.ndarray) -> Result:
            state, metrics = compiled.train_steps(init(h), h, tuple(split), order, program=tiny.program)
            state = state.replace(batch_stats=measure(state, tuple(split), order))
            return state, metrics.cross_entropy, logits(state)

        def eight_devices(h: Hyperparams, order: np.ndarray) -> Result:
            place = partial(replicate, mesh=(mesh := data_mesh(16)))
            assert mesh.size == 8
            images, batches = place(tuple(split)), shard_batches(order, mesh)
            state, metrics = compiled.train_steps(place(init(h)), place(h), images, batches, program=tiny.program)
            state = state.replace(batch_stats=measure(state, images, batches))
            assert len(state.step.sharding.device_set) == 8
            return state, metrics.cross_entropy, logits(state)

        def population(at_once: int | None) -> list[Result]:
            mesh = jax.sharding.Mesh(np.asarray(jax.devices()[: 2 if at_once is None else 1]), ("member",))
            stack = lambda *trees: shard_members(jax.tree.map(lambda *x: jnp.stack(x), *trees), mesh)  # noqa: E731
            images, batches, of = replicate(tuple(split), mesh), stack(*orders), {"program": tiny.program, "mesh": mesh}
            states = stack(*map(init, hparams))
            states, metrics = compiled.train_members(states, stack(*hparams), images, batches, at_once=at_once, **of)
            states = states.replace(batch_stats=compiled.measure_members(states, images, batches, **of))
            members = [jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), states) for i in range(2)]
            return [(state, metrics.cross_entropy[i], logits(state)) for i, state in enumerate(members)]

        alone = {run.__name__: list(map(run, hparams, orders)) for run in (loop, scan, eight_devices)}
        return alone | {"one after another": population(None), "vmap": population(2)}


@pytest.mark.parametrize("driver", ["scan", "eight_devices", "one after another", "vmap"])
@pytest.mark.parametrize("member", [0, 1])
def test_every_driver_is_the_loop(driver: str, member: int, drivers: dict[str, list[Result]]) -> None:
    (state, losses, logits), (want, want_losses, want_logits) = drivers[driver][member], drivers["loop"][member]
    assert np.asarray(losses).dtype == np.asarray(logits).dtype == np.float64 and int(state.step) == 13
    np.testing.assert_allclose(losses, want_losses, rtol=1e-10)
    np.testing.assert_allclose(logits, want_logits, atol=1e-10)
    for layer, leaves in want.params.items():
        for leaf in leaves:
            # In front of BatchNorm a bias has a gradient of exactly zero, and Adam makes steps of its rounding.
            if (layer, leaf) != ("dense_2", "bias"):
                got = np.asarray(state.params[layer][leaf])
                np.testing.assert_allclose(got, leaves[leaf], atol=1e-10, err_msg=f"{layer}/{leaf}")


def test_the_members_differ(drivers: dict[str, list[Result]]) -> None:
    first, second = (logits for _, _, logits in drivers["loop"])
    assert np.abs(first - second).max() > 0.1

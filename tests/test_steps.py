"""One step, its drivers: what they compute is the same."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Tiny, assert_trees_equal

from mnist_flax import compiled, steps
from mnist_flax.config import Hyperparams, StaticConfig
from mnist_flax.data import batches, datasets
from mnist_flax.metrics import summary, totals_of
from mnist_flax.optimizer import make_optimizer, max_norm, schedule_factor
from mnist_flax.state import Stream, init_state, stream_key
from mnist_flax.steps import GRADIENT_NORM_EVERY, data_loss, take, train_step


@pytest.fixture(scope="module")
def indices() -> np.ndarray:
    """One epoch of 200 examples in batches of 16: 13 steps, the last with 8 examples."""
    return batches.epoch_batches(200, 16, seed=0, epoch=0)


@pytest.fixture(scope="module")
def lone(tiny: Tiny, small: batches.Split, indices: np.ndarray):
    """A run of 13 steps of one member, dropout on, for several hyperparameters."""

    def run(**overrides: float) -> tuple:
        h = tiny.hparams(**overrides)
        return compiled.train_steps(tiny.init(h), h, small, indices, program=tiny.program)

    return run


def test_scan_equals_the_loop_bit_for_bit(tiny: Tiny, small: batches.Split, indices: np.ndarray, lone) -> None:
    h = tiny.hparams()
    state, metrics = tiny.init(h), []
    step = jax.jit(lambda state, h, batch: train_step(state, h, batch, program=tiny.program))
    for row in indices:
        state, m = step(state, h, take(small, row))
        metrics.append(m)
    scanned, scanned_metrics = lone()
    assert_trees_equal(scanned, state)
    assert_trees_equal(scanned_metrics, jax.tree.map(lambda *leaves: np.stack(leaves), *metrics))


def test_calls_of_any_size_are_the_same_run(tiny: Tiny, small: batches.Split, indices: np.ndarray, lone) -> None:
    h = tiny.hparams()
    state = tiny.init(h)
    for first, last in ((0, 4), (4, 8), (8, 13)):
        state, _ = compiled.train_steps(state, h, small, indices[first:last], program=tiny.program)
    assert_trees_equal(state, lone()[0])


def test_one_program_whatever_the_hyperparameters(lone) -> None:
    lone()
    before = compiled.train_steps._cache_size()
    for change in ({"learning_rate": 3e-2}, {"l2": 0.0}, {"dropout_rate": 0.0}, {"seed": 7}, {"b1": 0.5}, {"b2": 0.9},
                   {"label_smoothing": 0.1}):  # fmt: skip
        lone(**change)
    assert compiled.train_steps._cache_size() == before
    changed = {"learning_rate", "l2", "dropout_rate", "seed", "b1", "b2", "label_smoothing"}
    elsewhere = {"max_norm", "noise", "adversarial_weight", "adversarial_radius", "average_decay", "shift", "rotation",
                 "scaling", "shear", "elastic_strength", "elastic_width"}  # fmt: skip
    assert {f.name for f in dataclasses.fields(Hyperparams)} == changed | elsewhere  # those have tests of their own


def test_max_norm_is_the_projection(tiny: Tiny, small: batches.Split, indices: np.ndarray) -> None:
    batch, limit = take(tuple(small), jnp.asarray(indices[0])), 1.0
    kernels = {}
    for layers in ((), (1, 3)):
        h = tiny.hparams(max_norm=limit, learning_rate=0.05)
        static = dataclasses.replace(tiny.program.static, max_norm_layers=layers)
        program = dataclasses.replace(tiny.program, static=static)
        state, _ = jax.jit(partial(train_step, program=program))(init_state(h, program=program), h, batch)
        kernels[layers] = [np.asarray(state.params[f"dense_{layer}"]["kernel"], np.float64) for layer in (1, 2, 3)]
    for layer, (free, held) in enumerate(zip(kernels[()], kernels[1, 3], strict=True), start=1):
        norms = np.sqrt((free**2).sum(axis=0))
        assert (norms > limit).any()
        expected = free * np.minimum(1, limit / norms) if layer in (1, 3) else free
        np.testing.assert_allclose(held, expected, atol=1e-6)


def test_max_norm_is_a_limit_also_below_one() -> None:
    kernel, tx = {"kernel": jnp.array([[0.3, 0.9, 0.0], [0.4, 0.0, 0.0]])}, max_norm(0.6, {"kernel": True})
    updates, _ = tx.update({"kernel": jnp.zeros((2, 3))}, tx.init(kernel), kernel)  # norms of 0.5, 0.9 and 0
    np.testing.assert_allclose(updates["kernel"], [[0, -0.3, 0], [0, 0, 0]], atol=1e-6)


def test_every_hyperparameter_matters(lone) -> None:
    base = np.asarray(lone()[0].params["dense_1"]["kernel"])
    for change in ({"learning_rate": 3e-2}, {"l2": 0.1}, {"dropout_rate": 0.0}, {"seed": 7}, {"b1": 0.5}, {"b2": 0.9},
                   {"label_smoothing": 0.1}):  # fmt: skip
        assert np.abs(np.asarray(lone(**change)[0].params["dense_1"]["kernel"]) - base).max() > 1e-5, change


def test_the_gradient_norm_is_that_of_every_tenth_step(
    tiny: Tiny, small: batches.Split, indices: np.ndarray, lone
) -> None:
    _, metrics = lone()
    assert (
        np.flatnonzero(metrics.gradient_norm).tolist() == list(range(0, len(indices), GRADIENT_NORM_EVERY)) == [0, 10]
    )
    h = tiny.hparams()
    for measured in (0, 10):
        state, _ = compiled.train_steps(tiny.init(h), h, small, indices[:measured], program=tiny.program)
        batch, loss = take(small, indices[measured]), jax.grad(data_loss, has_aux=True)
        grads, _ = loss(state.params, state.batch_stats, h, batch, measured, program=tiny.program)
        norm = np.sqrt(sum((np.asarray(leaf, np.float64) ** 2).sum() for leaf in jax.tree.leaves(grads)))
        np.testing.assert_allclose(metrics.gradient_norm[measured], norm, rtol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 50, 203, 1000])
def test_evaluation_at_203_examples_equals_numpy(tiny: Tiny, dataset: datasets.Dataset, lone, batch_size: int) -> None:
    split, h = dataset.read("test[:203]"), tiny.hparams(l2=0.01, label_smoothing=0.3)
    state, _ = lone()
    got = summary(
        totals_of(compiled.eval_steps(state, h, split, batches.eval_batches(203, batch_size), program=tiny.program)[0])
    )

    p = jax.tree.map(lambda x: np.asarray(x, np.float64), state.params)
    s = jax.tree.map(lambda x: np.asarray(x, np.float64), state.batch_stats["batch_norm_2"])
    x = np.maximum(split.images.reshape(203, 784) / 255 @ p["dense_1"]["kernel"] + p["dense_1"]["bias"], 0)
    x = x @ p["dense_2"]["kernel"] + p["dense_2"]["bias"]
    x = (x - s["mean"]) / np.sqrt(s["var"] + 1e-3) * p["batch_norm_2"]["scale"] + p["batch_norm_2"]["bias"]
    logits = np.maximum(x, 0) @ p["dense_3"]["kernel"] + p["dense_3"]["bias"]
    nll = np.log(np.exp(logits).sum(1)) - logits[np.arange(203), split.labels]
    penalty = 0.01 * (p["dense_2"]["kernel"] ** 2).sum()
    assert got["examples"] == 203
    assert got["accuracy"] == (logits.argmax(1) == split.labels).mean()
    np.testing.assert_allclose(got["cross_entropy"], nll.mean(), rtol=1e-5)
    np.testing.assert_allclose(got["l2_penalty"], penalty, rtol=1e-5)
    np.testing.assert_allclose(got["loss"], nll.mean() + penalty, rtol=1e-5)


def test_padding_counts_nowhere(tiny: Tiny, small: batches.Split, lone) -> None:
    """A batch filled up with -1 and the short batch itself: the same update, the same metrics."""
    h = tiny.hparams(dropout_rate=0.0)
    short, padded = np.arange(5), np.r_[np.arange(5), [-1] * 11]
    step = jax.jit(lambda row: train_step(tiny.init(h), h, take(small, row), program=tiny.program))
    (a, ma), (b, mb) = step(short), step(padded)
    assert int(ma.examples) == int(mb.examples) == 5
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), ma, mb)
    for layer in ("dense_1", "dense_3"):
        np.testing.assert_allclose(a.params[layer]["kernel"], b.params[layer]["kernel"], atol=1e-5)


def test_streams_and_steps_have_keys_of_their_own() -> None:
    keys = {str(jax.random.key_data(stream_key(seed, stream, step)))
            for seed in (0, 1) for stream in Stream for step in (0, 1, 2)}  # fmt: skip
    assert len(keys) == 30


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 41])
def test_schedules(schedule, warmup: int) -> None:
    static = StaticConfig(schedule=schedule, warmup_epochs=warmup / 50, epochs=1)
    factors = schedule_factor(np.arange(51), static, steps_per_epoch=50)
    assert isinstance(factors, np.ndarray)  # of the host's numbers, computed on the host
    on_device = jax.jit(lambda count: schedule_factor(count, static, steps_per_epoch=50))
    np.testing.assert_allclose([on_device(count) for count in range(51)], factors, atol=2e-7)
    assert on_device(warmup) == 1  # exactly, though XLA may make 41 / 41 a product, which is less in float32
    np.testing.assert_allclose(factors[:warmup], np.arange(1, warmup + 1) / (warmup + 1), atol=1e-7)
    progress = np.arange(51 - warmup) / (50 - warmup)
    want = {"constant": np.ones_like(progress), "linear": 1 - progress, "cosine": (1 + np.cos(np.pi * progress)) / 2}
    np.testing.assert_allclose(factors[warmup:], want[schedule], atol=1e-6)
    assert factors[:50].min() > 0  # no step of the run is wasted


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [1, 2])
def test_a_decay_of_few_steps_ends_at_zero_too(schedule, steps: int) -> None:
    factors = schedule_factor(np.arange(steps + 1), StaticConfig(schedule=schedule, epochs=1), steps_per_epoch=steps)
    np.testing.assert_allclose(factors, np.linspace(1, 0, steps + 1), atol=1e-6)


def test_the_schedule_scales_the_update(tiny: Tiny) -> None:
    h, params = tiny.hparams(learning_rate=0.5, l2=0.0), {"dense_1": {"kernel": jnp.ones((2, 2))}}
    tx = make_optimizer(h, StaticConfig(schedule="linear", epochs=1), tiny.model, steps_per_epoch=4)
    opt_state, sizes = tx.init(params), []
    for _ in range(4):
        updates, opt_state = tx.update(params, opt_state, params)  # a constant gradient: Adam's direction is 1
        sizes.append(float(-updates["dense_1"]["kernel"][0, 0]))
    np.testing.assert_allclose(sizes, [0.5, 0.375, 0.25, 0.125], rtol=1e-5)


def test_l2_is_the_gradient_of_the_reported_penalty(tiny: Tiny) -> None:
    """With plain descent behind it instead of Adam, the chain's first part alone moves the weights."""
    h = tiny.hparams(l2=0.3)
    params = tiny.init(h).params
    tx = tiny.program.optimizer(h)
    zero = jax.tree.map(jnp.zeros_like, params)
    _, opt_state = tx.update(zero, tx.init(params), params)
    gradient = jax.grad(lambda p: h.l2 * tiny.program.l2_sum(p))(params)  # Adam's first moment is (1 - b1) times it
    jax.tree.map(lambda m, g: np.testing.assert_allclose(m, 0.1 * g, rtol=1e-4), opt_state[1].mu, gradient)
    assert np.abs(gradient["dense_2"]["kernel"]).max() > 0.01


def test_smoothed_targets_are_those_of_the_formula() -> None:
    rng = np.random.default_rng(0)
    logits, labels, share = rng.normal(size=(7, 5)), rng.integers(0, 5, 7), 0.3
    mask = np.arange(7) < 5
    batch = steps.Batch(np.zeros((7, 1), np.uint8), labels, mask)
    got, correct = steps._sums(jnp.asarray(logits), batch, share)
    targets = (1 - share) * np.eye(5)[labels] + share / 5
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(got, -(targets * log_probabilities).sum(axis=1)[mask].sum(), rtol=1e-5)
    assert correct == (logits.argmax(axis=1) == labels)[mask].sum()


def test_the_streams_and_the_first_weights_never_change(tiny: Tiny) -> None:
    """Else the default run would be another one."""
    assert {stream.name: int(stream) for stream in Stream} == {
        "PARAMS": 0, "DROPOUT": 1, "NOISE": 2, "ADVERSARIAL": 3, "DISTORTIONS": 4
    }  # fmt: skip
    kernel = np.asarray(tiny.init(tiny.hparams()).params["dense_1"]["kernel"])
    np.testing.assert_allclose(kernel[0, :3], [0.06576651, 0.05112169, -0.03011950], rtol=1e-6)

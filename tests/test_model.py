import dataclasses
from collections.abc import Iterator
from functools import partial

import flax.linen as nn
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY, Tiny
from scipy import stats

from mnist_flax.config import Config, StaticConfig
from mnist_flax.model import MLP, Dropout, gaussian, random_bits
from mnist_flax.optimizer import kernel_mask, l2_sum
from mnist_flax.state import Stream, inference_variables, stream_key
from mnist_flax.steps import take, train_step


class Both(nn.Module):
    """Flax's Dropout or ours, under one name."""

    ours: bool

    @nn.compact
    def __call__(self, x: jax.Array, rate: jax.Array) -> jax.Array:
        if self.ours:
            return Dropout(name="dropout_1")(x, rate)
        return nn.Dropout(0.3, deterministic=False, name="dropout_1")(x)


def test_dropout_masks_are_as_random_as_those_of_flax() -> None:
    """The shares of units, examples, masks and pairs that are dropped: as binomial as Flax's, by the same measures."""
    keys, x = jax.random.split(jax.random.key(0), 600), jnp.ones((64, 33))  # odd: the last word gives one half
    for ours in (True, False):
        apply = partial(Both(ours).apply, {}, x, jnp.float32(0.3))
        dropped = np.asarray(jax.jit(jax.vmap(lambda key, apply=apply: apply(rngs={"dropout": key})))(keys)) == 0
        pairs = {
            "by unit": dropped.mean(axis=(0, 1)),
            "by example": dropped.mean(axis=(0, 2)),
            "by mask": dropped.mean(axis=(1, 2)),
            "both halves of a word": (dropped[..., :16] & dropped[..., 17:]).mean(axis=(0, 1)),
            "neighbouring units": (dropped[..., 1:] & dropped[..., :-1]).mean(axis=(0, 1)),
            "neighbouring examples": (dropped[:, 1:] & dropped[:, :-1]).mean(axis=(0, 2)),
            "next mask": (dropped[1:] & dropped[:-1]).mean(axis=0).ravel(),
        }
        for name, shares in pairs.items():
            want = 0.3 if name.startswith("by") else 0.09
            n = dropped.size / len(shares)
            z = (shares - want) / np.sqrt(want * (1 - want) / n)
            assert abs(z).max() < 4.8 and abs(z.mean()) < 5 / np.sqrt(len(z)), (ours, name)
            if len(z) > 500:  # pairs in a row share a unit, which makes their spread 1.21 of a binomial's
                assert 0.9 < z.std() < (1.1 if name == "by mask" else 1.35), (ours, name)


def test_dropout_keeps_what_it_keeps_and_its_gradient() -> None:
    x, key = jnp.arange(1.0, 4001).reshape(8, 500), jax.random.key(0)

    def total(x: jax.Array) -> jax.Array:
        return jnp.sum(Both(True).apply({}, x, jnp.float32(0.3), rngs={"dropout": key}))

    y = np.asarray(Both(True).apply({}, x, jnp.float32(0.3), rngs={"dropout": key}))
    np.testing.assert_allclose(y[y > 0], np.asarray(x)[y > 0] / 0.7, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(total)(x), (y > 0) / 0.7, rtol=1e-6)
    assert (np.asarray(Both(True).apply({}, x, jnp.float32(0), rngs={"dropout": key})) == x).all()


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5, 0.9])
def test_dropout_keep_rate_and_scale(rate: float) -> None:
    n = 200_000
    y = Both(True).apply({}, jnp.ones((1, n)), jnp.float32(rate), rngs={"dropout": jax.random.key(1)})
    kept = np.asarray(y) > 0
    spread = np.sqrt(rate * (1 - rate) / n)
    assert abs(kept.mean() - (1 - rate)) <= 5 * spread
    np.testing.assert_allclose(np.asarray(y)[kept], 1 / (1 - rate), rtol=1e-6)


def test_noise_is_standard_normal() -> None:
    numbers = np.asarray(gaussian(jax.random.key(0), (1000, 1000)), np.float64)
    n, (skewness, excess) = numbers.size, (stats.skew(numbers, axis=None), stats.kurtosis(numbers, axis=None))
    for found, variance in ((numbers.mean(), 1), (numbers.var() - 1, 2), (skewness, 6), (excess, 24)):
        assert abs(found) < 4 * np.sqrt(variance / n)
    assert stats.kstest(numbers.ravel()[:200_000], "norm").pvalue > 0.01
    pairs = [(numbers[:, 1:] * numbers[:, :-1]).mean(), (numbers[1:] * numbers[:-1]).mean()]
    assert np.abs(pairs).max() < 4 / np.sqrt(n) and np.abs(numbers).max() < 5.4
    with jax.enable_x64(True):  # the same numbers in float64, to its digits: scipy's quantiles of the same bits
        bits = np.asarray(jax.random.bits(jax.random.key(0), (50, 50), jnp.uint32))
        wide = gaussian(jax.random.key(0), (50, 50))
        np.testing.assert_allclose(wide, stats.norm.ppf(((bits >> 9) + 0.5) / 2**23), rtol=1e-9)


@pytest.mark.parametrize("at", ["images", "hidden", "both"])
def test_noise_is_added_where_it_is_asked_for(at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against numpy, which is told the random numbers of each place; evaluation has none."""
    network = MLP((6, 5), (2,), 4, noise_at=at)  # type: ignore
    images = np.random.default_rng(0).uniform(size=(9, 7)).astype(np.float32)
    variables = jax.tree.map(np.asarray, network.init(jax.random.key(0), images))
    drawn: list[np.ndarray] = []
    monkeypatch.setattr("mnist_flax.model.gaussian", lambda key, shape: drawn.append(gaussian(key, shape)) or drawn[-1])
    rngs = {"dropout": jax.random.key(1), "noise": jax.random.key(2)}
    found, _ = network.apply(variables, images, noise=0.4, train=True, rngs=rngs, mutable=["batch_stats"])
    assert [each.shape for each in drawn] == ([(9, 7)] * (at != "hidden") + [(9, 6), (9, 5)] * (at != "images"))
    noise = {(9, 7): 0.0, (9, 6): 0.0, (9, 5): 0.0} | {each.shape: 0.4 * np.asarray(each) for each in drawn}
    x = images + noise[9, 7]
    for layer in (1, 2):
        dense = variables["params"][f"dense_{layer}"]
        x = x @ dense["kernel"] + dense["bias"]
        x = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-3) if layer == 2 else x
        x = np.maximum(x + noise[x.shape], 0)
    dense = variables["params"]["dense_3"]
    np.testing.assert_allclose(found, x @ dense["kernel"] + dense["bias"], atol=1e-5)
    assert len({each[0, 0] for each in map(np.asarray, drawn)}) == len(drawn)
    quiet = MLP((6, 5), (2,), 4).apply(variables, images)
    np.testing.assert_array_equal(network.apply(variables, images, noise=0.4), quiet)


def test_images_in_every_form_give_the_same_logits(tiny: Tiny, small) -> None:
    state = tiny.init(tiny.hparams())
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    images = np.asarray(small.images[:5])
    want = tiny.model.apply(variables, images)
    assert want.dtype == jnp.float32 and want.shape == (5, 10)
    for form in (images[..., 0], images.reshape(5, 784), images / np.float32(255), (images / 255.0)[..., 0]):
        np.testing.assert_allclose(tiny.model.apply(variables, form), want, rtol=1e-6, atol=1e-6)


def test_padding_leaves_no_trace_in_batch_norm(tiny: Tiny, small) -> None:
    state = tiny.init(tiny.hparams())
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    images, mask = np.asarray(small.images[:8]), np.arange(8) < 5
    garbage = np.where(mask[:, None, None, None], images, 255 - images)
    padded, stats = tiny.model.apply(variables, garbage, mask=mask, train=True, mutable=["batch_stats"],
                                     rngs={"dropout": jax.random.key(0)})  # fmt: skip
    short, short_stats = tiny.model.apply(variables, images[:5], train=True, mutable=["batch_stats"],
                                          rngs={"dropout": jax.random.key(0)})  # fmt: skip
    np.testing.assert_allclose(padded[:5], short, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), stats, short_stats)


def test_layers_carry_what_they_are_told() -> None:
    model = MLP(widths=(8, 9), batch_norm_layers=(1,), num_classes=10)
    params = model.init(jax.random.key(0), jnp.zeros((1, 6)))["params"]
    assert {k: v["kernel"].shape for k, v in params.items() if "kernel" in v} == {
        "dense_1": (6, 8), "dense_2": (8, 9), "dense_3": (9, 10),
    }  # fmt: skip
    assert "batch_norm_1" in params and "batch_norm_2" not in params
    mask = kernel_mask(model, (1, 3), params)
    on = {f"{layer}/{leaf}" for layer, leaves in mask.items() for leaf, value in leaves.items() if value}
    assert on == {"dense_1/kernel", "dense_3/kernel"}
    want = sum(np.square(np.asarray(params[k]["kernel"], np.float64)).sum() for k in ("dense_1", "dense_3"))
    np.testing.assert_allclose(l2_sum(params, StaticConfig(widths=(8, 9), l2_layers=(1, 3)), model), want, rtol=1e-6)


def test_batch_norm_has_the_constants_of_keras() -> None:
    """Momentum 0.99 and epsilon 1e-3, the defaults of Keras's layer."""
    x = np.array([[0.02, 0.5, 3.0], [0.04, 0.1, 1.0]], np.float32)
    dense, zero, one = {"kernel": np.eye(3, dtype=np.float32), "bias": np.zeros(3)}, np.zeros(3), np.ones(3)
    params = {"dense_1": dense, "batch_norm_1": {"scale": one, "bias": zero}, "dense_2": dense}
    variables = {"params": params, "batch_stats": {"batch_norm_1": {"mean": zero, "var": one}}}
    apply = partial(MLP((3,), (1,), 3).apply, train=True, mutable=["batch_stats"])
    logits, updated = jax.jit(apply)(variables, x, rngs={"dropout": jax.random.key(0)})
    mean, var = x.mean(axis=0), x.var(axis=0)
    np.testing.assert_allclose(logits, np.maximum((x - mean) / np.sqrt(var + 1e-3), 0), rtol=1e-5, atol=1e-6)
    after = updated["batch_stats"]["batch_norm_1"]
    np.testing.assert_allclose(after["mean"], 0.01 * mean, rtol=1e-5)
    np.testing.assert_allclose(after["var"], 0.99 + 0.01 * var, rtol=1e-5)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
@pytest.mark.parametrize("shape", [(1,), (128, 256), (3, 5, 7), (0, 4)])
def test_random_bits_are_those_of_jax(shape: tuple[int, ...], impl: str) -> None:
    keys = jax.vmap(partial(jax.random.key, impl=impl))(jnp.array([0, 1, 2**31 + 5], jnp.uint32))
    for key in keys:
        np.testing.assert_array_equal(random_bits(key, shape), jax.random.bits(key, shape, jnp.uint32))
    if impl == "threefry2x32":
        together = jax.vmap(partial(random_bits, shape=shape))(keys)
        np.testing.assert_array_equal(together, [random_bits(key, shape) for key in keys])


def test_the_dropout_masks_of_a_seed_never_change() -> None:
    """Else a run would not go on as it began after an update of this package. They follow from the layers' names."""
    ones = {"kernel": np.ones((32, 32), np.float32), "bias": np.zeros(32)}
    params = {"dense_1": ones, "dense_2": ones, "dense_3": ones}
    apply = partial(MLP((32, 32), (), 32).apply, dropout_rate=0.5, train=True,
                    capture_intermediates=lambda module, _: isinstance(module, Dropout))  # fmt: skip
    key = stream_key(0, Stream.DROPOUT, step=3)
    _, seen = jax.jit(apply)({"params": params}, np.ones((2, 32)), rngs={"dropout": key})
    outputs = {name: layer["__call__"][0] for name, layer in seen["intermediates"].items()}
    kept = {name: np.packbits(np.asarray(output) > 0).tobytes().hex() for name, output in outputs.items()}
    assert kept == {"dropout_1": "cb2587dbaae2ca8c", "dropout_2": "76bcd6acd81141d1"}


def test_no_hidden_layer_is_softmax_regression() -> None:
    model = MLP(widths=(), batch_norm_layers=(), num_classes=3)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 4)))
    assert jax.tree.map(jnp.shape, variables) == {"params": {"dense_1": {"bias": (3,), "kernel": (4, 3)}}}


def test_bfloat16_rounds_the_factors_of_products_and_nothing_else(small) -> None:
    config = Config(widths=(16, 9), batch_norm_layers=(), l2_layers=(), precision="bfloat16")
    tiny = Tiny(config)
    params = tiny.init(tiny.hparams()).params
    images = np.asarray(small.images[:20])
    x = images.reshape(20, -1).astype(np.float32) / np.float32(255)
    for number, name in enumerate(("dense_1", "dense_2", "dense_3")):
        x = np.maximum(x, 0) if number else x
        factors = [np.asarray(jnp.asarray(a).astype(jnp.bfloat16), np.float64) for a in (x, params[name]["kernel"])]
        x = np.float32(factors[0] @ factors[1] + np.asarray(params[name]["bias"]))
    logits = tiny.model.apply({"params": params}, images)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, x, rtol=1e-2, atol=2e-3)  # a rounding may go the other way in a later layer
    exact = Tiny(dataclasses.replace(config, precision="float32")).model.apply({"params": params}, images)
    assert 1e-4 < np.abs(np.asarray(exact) - x).max() < 0.1


def equations(jaxpr: jax.extend.core.Jaxpr) -> Iterator[jax.extend.core.JaxprEqn]:
    """All equations, those of inner functions too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


def test_bfloat16_factors_and_float32_sums_also_backward(small) -> None:
    tiny = Tiny(dataclasses.replace(TINY, precision="bfloat16"))
    state, hparams = tiny.init(tiny.hparams()), tiny.hparams()
    traced = jax.make_jaxpr(partial(train_step, program=tiny.program))(state, hparams, take(small, jnp.arange(16)))
    types = [
        ([str(v.aval.dtype) for v in e.invars], str(e.outvars[0].aval.dtype))  # type: ignore[union-attr]
        for e in equations(traced.jaxpr)
        if e.primitive.name == "dot_general"
    ]
    assert types == [(["bfloat16"] * 2, "float32")] * 9  # three layers: forward, to the input, to the kernel


def test_float32_is_not_rounded_by_accelerators_either(small) -> None:
    tiny = Tiny()
    state, hparams = tiny.init(tiny.hparams()), tiny.hparams()
    traced = jax.make_jaxpr(partial(train_step, program=tiny.program))(state, hparams, take(small, jnp.arange(16)))
    products = [e for e in equations(traced.jaxpr) if e.primitive.name == "dot_general"]
    assert [e.params["precision"] for e in products] == [(jax.lax.Precision.HIGHEST,) * 2] * 8


@pytest.mark.parametrize("columns", [10, 40])
def test_bfloat16_gradients_are_those_of_numpy(columns: int) -> None:
    rng = np.random.default_rng(0)
    x, into = (rng.standard_normal(shape).astype(np.float32) for shape in ((50, 20), (50, columns)))
    layer = MLP(widths=(), batch_norm_layers=(), num_classes=columns, precision="bfloat16")
    kernel = layer.init(jax.random.key(0), x)["params"]["dense_1"]["kernel"]

    def f(x: jax.Array, kernel: jax.Array) -> jax.Array:
        params = {"dense_1": {"kernel": kernel, "bias": jnp.zeros(columns)}}
        return jnp.sum(jnp.asarray(layer.apply({"params": params}, x)) * into)

    a, b, c = (np.asarray(jnp.asarray(each).astype(jnp.bfloat16), np.float64) for each in (x, kernel, into))
    of_x, of_kernel = jax.grad(f, argnums=(0, 1))(jnp.asarray(x), kernel)
    assert of_x.dtype == of_kernel.dtype == jnp.float32
    np.testing.assert_allclose(of_kernel, a.T @ c, rtol=1e-5, atol=1e-5)  # rounded to bfloat16 it would be 4e-3
    np.testing.assert_allclose(of_x, c @ b.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("columns", [1, 10, 31, 32])
def test_a_narrow_product_and_its_gradients_are_those_of_matmul(columns: int) -> None:
    """Below 32 columns they are written in another order: the last bits differ, so the limit is part of a run."""
    rng = np.random.default_rng(0)
    x, kernel, into = (rng.standard_normal(shape) for shape in ((50, 20), (20, columns), (50, columns)))

    def f(x: jax.Array, kernel: jax.Array) -> jax.Array:
        layer = MLP(widths=(), batch_norm_layers=(), num_classes=columns)
        return jnp.sum(layer.apply({"params": {"dense_1": {"kernel": kernel, "bias": jnp.zeros(columns)}}}, x) * into)

    with jax.enable_x64(True):
        value_and_gradients = jax.value_and_grad(f, argnums=(0, 1))
        value, gradients = value_and_gradients(x, kernel)
        np.testing.assert_allclose(value, (x @ kernel * into).sum(), rtol=1e-12)
        np.testing.assert_allclose(gradients[0], into @ kernel.T, rtol=1e-12)
        np.testing.assert_allclose(gradients[1], x.T @ into, rtol=1e-12, atol=1e-12)
        names = [each.primitive.name for each in equations(jax.make_jaxpr(value_and_gradients)(x, kernel).jaxpr)]
        assert names.count("optimization_barrier") == (2 if columns < 32 else 0)  # forward and backward


def test_a_unit_of_the_first_layer_is_a_picture() -> None:
    kernel, shape = np.arange(2 * 3 * 1 * 5.0).reshape(6, 5), (2, 3, 1)
    model = MLP(widths=(5,), batch_norm_layers=(), num_classes=10)
    pictures = model.first_layer_pictures({"dense_1": {"kernel": kernel}}, shape)
    assert pictures.shape == (5, *shape)
    for unit in range(5):
        np.testing.assert_array_equal(pictures[unit].ravel(), kernel[:, unit])


def test_the_dense_layers_are_all_of_them_in_order(tiny: Tiny) -> None:
    variables = inference_variables(tiny.init(tiny.hparams()))
    layers = tiny.model.dense_layers(variables)
    assert layers is not None
    assert [layer.kernel.shape for layer in layers] == [(784, 16), (16, 16), (16, 10)]
    assert [layer.bias.shape for layer in layers] == [(16,), (16,), (10,)]
    assert [layer.batch_norm is not None for layer in layers] == [False, True, False]
    assert {*(layers[1].batch_norm or {})} == {"scale", "bias", "mean", "var"}

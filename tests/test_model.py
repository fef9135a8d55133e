import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Tiny

from mnist_flax.model import MLP, Dropout, kernels_of, l2_penalty


class Both(nn.Module):
    """Flax's Dropout or ours, under one name."""

    ours: bool

    @nn.compact
    def __call__(self, x: jax.Array, rate: jax.Array) -> jax.Array:
        if self.ours:
            return Dropout(name="dropout_1")(x, rate)
        return nn.Dropout(0.3, deterministic=False, name="dropout_1")(x)


def test_dropout_masks_equal_flax() -> None:
    x = jnp.arange(1.0, 4001).reshape(8, 500)
    for seed in range(3):
        rngs = {"dropout": jax.random.key(seed)}
        ours = jax.jit(Both(True).apply)({}, x, jnp.float32(0.3), rngs=rngs)
        flax = Both(False).apply({}, x, jnp.float32(0.3), rngs=rngs)
        np.testing.assert_array_equal(ours == 0, flax == 0)
        np.testing.assert_allclose(ours, flax, rtol=1e-6)


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5, 0.9])
def test_dropout_keep_rate_and_scale(rate: float) -> None:
    n = 200_000
    y = Both(True).apply({}, jnp.ones((1, n)), jnp.float32(rate), rngs={"dropout": jax.random.key(1)})
    kept = np.asarray(y) > 0
    spread = np.sqrt(rate * (1 - rate) / n)
    assert abs(kept.mean() - (1 - rate)) <= 5 * spread
    np.testing.assert_allclose(np.asarray(y)[kept], 1 / (1 - rate), rtol=1e-6)


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
    model = MLP(widths=(8, 9), batch_norm_layers=(1,), l2_layers=(1, 3), num_classes=10)
    params = model.init(jax.random.key(0), jnp.zeros((1, 6)))["params"]
    assert {k: v["kernel"].shape for k, v in params.items() if "kernel" in v} == {
        "dense_1": (6, 8), "dense_2": (8, 9), "dense_3": (9, 10),
    }  # fmt: skip
    assert "batch_norm_1" in params and "batch_norm_2" not in params
    mask = kernels_of(params, (1, 3))
    on = {f"{layer}/{leaf}" for layer, leaves in mask.items() for leaf, value in leaves.items() if value}
    assert on == {"dense_1/kernel", "dense_3/kernel"}
    want = sum(np.square(np.asarray(params[k]["kernel"], np.float64)).sum() for k in ("dense_1", "dense_3"))
    np.testing.assert_allclose(l2_penalty(params, (1, 3)), want, rtol=1e-6)


def test_no_hidden_layer_is_softmax_regression() -> None:
    model = MLP(widths=(), batch_norm_layers=(), l2_layers=(), num_classes=3)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 4)))
    assert jax.tree.map(jnp.shape, variables) == {"params": {"dense_1": {"bias": (3,), "kernel": (4, 3)}}}

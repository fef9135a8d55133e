"""A network without its BatchNorm layers is the same function."""

import jax
import numpy as np
import pytest
from conftest import Tiny

from mnist_flax.config import Config, Hyperparams
from mnist_flax.export.network import fold_batch_norm
from mnist_flax.state import as_arrays


@pytest.mark.parametrize(("widths", "batch_norm_layers"), [((), ()), ((16, 9, 8), (1, 3))])
def test_logits_agree(widths: tuple[int, ...], batch_norm_layers: tuple[int, ...], dataset) -> None:
    tiny = Tiny(Config(widths=widths, batch_norm_layers=batch_norm_layers, l2_layers=()))
    state = jax.jit(tiny.init)(as_arrays(Hyperparams()))
    rng = np.random.default_rng(0)  # nothing may stand at its initial value
    params, batch_stats = jax.tree.map(
        lambda leaf: np.float32(leaf * rng.uniform(0.5, 1.5, leaf.shape) + rng.uniform(0.01, 0.1, leaf.shape)),
        (state.params, state.batch_stats),
    )
    images = dataset.read("test[:50]").images
    want = jax.jit(tiny.model.apply)({"params": params, "batch_stats": batch_stats}, np.asarray(images))
    got = images.reshape(50, -1).astype(np.float32) / np.float32(255)
    layers = tiny.model.dense_layers({"params": params, "batch_stats": batch_stats})
    for number, (kernel, bias) in enumerate(fold_batch_norm(layers)):
        got = (np.maximum(got, 0) if number else got) @ kernel + bias
    assert got.dtype == np.float32 and got.shape == (50, 10)
    np.testing.assert_allclose(got, np.asarray(want), rtol=1e-4, atol=1e-4)

"""Distortions against scipy.ndimage, on the same random numbers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Tiny
from scipy import ndimage, stats

from mnist_flax import compiled
from mnist_flax.config import Config, Hyperparams
from mnist_flax.data import batches
from mnist_flax.distortions import affine_changes, affine_places, distort, elastic_shifts, sample, smooth
from mnist_flax.state import Stream, as_arrays, stream_key

STRONG = as_arrays(Hyperparams(shift=3, rotation=25, scaling=0.2, shear=0.3, elastic_strength=36, elastic_width=4.5))
NO = {name: 0.0 for name in ("shift", "rotation", "scaling", "shear", "elastic_strength")}


@pytest.fixture(scope="module")
def images(small: batches.Split) -> np.ndarray:
    return np.asarray(small.images[:20], np.float32) / 255


def places(batch: int) -> jax.Array:
    grid = np.stack(np.meshgrid(np.arange(28.0), np.arange(28.0), indexing="ij"))
    return jnp.asarray(np.broadcast_to(grid, (batch, *grid.shape)), jnp.float32)


def seen_at(image: np.ndarray, at: np.ndarray) -> np.ndarray:
    return ndimage.map_coordinates(image[..., 0].astype(float), at, order=1, mode="grid-constant")


def test_values_between_pixels_are_those_of_scipy(images: np.ndarray) -> None:
    at = np.random.default_rng(0).uniform(-4, 32, (20, 2, 28, 28)).astype(np.float32)  # far outside too
    found = np.asarray(jax.vmap(sample)(jnp.asarray(images), jnp.asarray(at)))[..., 0]
    np.testing.assert_allclose(found, np.stack(list(map(seen_at, images, at))), atol=1e-5)


def test_affine_distortions_are_those_of_scipy(images: np.ndarray) -> None:
    changes = affine_changes(jax.random.key(0), 20, STRONG)
    found = np.asarray(jax.vmap(sample)(jnp.asarray(images), affine_places(changes, places(20))))[..., 0]
    for image, result, matrix, offset in zip(images, found, *map(np.asarray, changes), strict=True):
        middle = np.full(2, 13.5)
        want = ndimage.affine_transform(
            image[..., 0].astype(float), matrix, middle + offset - matrix @ middle, order=1, mode="grid-constant"
        )
        np.testing.assert_allclose(result, want, atol=1e-5)


def test_elastic_distortions_are_those_of_scipy(images: np.ndarray) -> None:
    key = jax.random.key(3)
    shifts = np.asarray(elastic_shifts(key, (20, 2, 28, 28), STRONG))
    field = np.asarray(jax.random.uniform(key, (20, 2, 28, 28), minval=-1, maxval=1), float)
    want = 36 * ndimage.gaussian_filter(field, (0, 0, 4.5, 4.5), mode="constant", truncate=27 / 4.5)
    np.testing.assert_allclose(shifts, want, atol=1e-5)
    assert 0.5 < np.abs(shifts).mean() < 3  # pixels: it does bend
    found = np.asarray(jax.vmap(sample)(jnp.asarray(images), places(20) + shifts))[..., 0]
    np.testing.assert_allclose(found, np.stack(list(map(seen_at, images, np.asarray(places(20)) + want))), atol=1e-5)


def test_angle_shear_scale_and_shift_are_uniform_within_their_strengths() -> None:
    n = 4000
    for name, strength in (("rotation", 25.0), ("shear", 0.3), ("scaling", 0.2), ("shift", 3.0)):
        changes = affine_changes(jax.random.key(1), n, as_arrays(Hyperparams(**NO | {name: strength})))
        matrix, offset = map(np.asarray, changes)
        angle = np.rad2deg(np.arctan2(matrix[:, 1, 0], matrix[:, 0, 0]))
        drawn = {"rotation": [angle], "shear": [matrix[:, 0, 1]], "shift": list(offset.T),
                 "scaling": [matrix[:, 0, 0] - 1, matrix[:, 1, 1] - 1]}[name]  # fmt: skip
        for each in drawn:
            assert stats.kstest(each, "uniform", (-strength, 2 * strength)).pvalue > 0.001
        if name == "rotation":
            np.testing.assert_allclose(np.linalg.det(matrix), 1, rtol=1e-5)


@pytest.mark.parametrize("kind", ["affine", "elastic", "both"])
def test_strengths_of_zero_leave_the_image(kind, images: np.ndarray) -> None:
    found = distort(jax.random.key(0), jnp.asarray(images), as_arrays(Hyperparams(**NO)), kind=kind)
    np.testing.assert_allclose(found, images, atol=1e-5)


def test_both_is_the_elastic_field_on_top_of_the_affine_change(images: np.ndarray) -> None:
    key = jax.random.key(5)
    first, second = jax.random.split(key)
    at = affine_places(affine_changes(first, 20, STRONG), places(20)) + elastic_shifts(second, (20, 2, 28, 28), STRONG)
    found = distort(key, jnp.asarray(images), STRONG, kind="both")
    np.testing.assert_allclose(found, jax.vmap(sample)(jnp.asarray(images), at), atol=1e-5)
    assert min(np.abs(found[i] - found[j]).max() for i in range(5) for j in range(i)) > 0.1  # each in its own way


def test_smoothing_by_a_tiny_width_changes_nothing() -> None:
    lines = jnp.asarray(np.random.default_rng(0).normal(size=(3, 28)), jnp.float32)
    np.testing.assert_allclose(smooth(lines, 0.1), lines, atol=1e-6)


@pytest.mark.parametrize("kind", ["affine", "elastic"])
def test_training_sees_the_distorted_images_and_evaluation_does_not(kind, small: batches.Split) -> None:
    """A step on images = the step of a run without the setting on the images that it distorts to."""
    plain, with_it = (Tiny(Config(widths=(16, 16), batch_size=16, distort=each)) for each in ("none", kind))
    h, order = plain.hparams(rotation=20, seed=4), np.arange(16, dtype=np.int32)[None]
    state = jax.jit(plain.init)(h)
    images = jnp.asarray(small.images, jnp.float32) / 255
    moved = images.at[:16].set(distort(stream_key(4, Stream.DISTORTIONS, 0), images[:16], h, kind=kind))
    step = partial(compiled.scan_steps, jax.tree.map(jnp.copy, state), h)
    (ours, _), (want, _) = (
        step((small.images, small.labels), order, program=with_it.program),
        step((moved, small.labels), order, program=plain.program),
    )
    np.testing.assert_allclose(ours.params["dense_1"]["kernel"], want.params["dense_1"]["kernel"], atol=1e-6)
    a, b = (compiled.eval_steps(ours, h, tuple(small), order, program=each.program)[1] for each in (plain, with_it))
    np.testing.assert_array_equal(a, b)

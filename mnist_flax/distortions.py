"""Distort images at random: shift, turn, scale and shear them (affine), and bend them (elastic).

    images = distort(key, images, hparams, kind="both")

The strengths are hyperparameters. Pixels that move in are 0; values between pixels are bilinear.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.ndimage import map_coordinates

from mnist_flax.config import Hyperparams

Kind = Literal["none", "affine", "elastic", "both"]


def distort(key: Array, images: Array, hparams: Hyperparams, *, kind: Kind) -> Array:
    """Float [B, H, W, C] images, each distorted in its own way."""
    affine_key, elastic_key = jax.random.split(key)
    places = jnp.stack(jnp.meshgrid(*map(jnp.arange, images.shape[1:3]), indexing="ij")).astype(images.dtype)
    at = jnp.broadcast_to(places, (len(images), *places.shape))  # where each pixel comes from: [B, 2, H, W]
    if kind in ("affine", "both"):
        at = affine_places(affine_changes(affine_key, len(images), hparams), at)
    if kind in ("elastic", "both"):
        at = at + elastic_shifts(elastic_key, at.shape, hparams)
    return jax.vmap(sample)(images, at)


def affine_changes(key: Array, batch: int, hparams: Hyperparams) -> tuple[Array, Array]:
    """For each image a matrix [B, 2, 2] and an offset [B, 2] in pixels, in the order row, column.

    Angle, shear, the factor of each axis and the offset are uniform within their strengths. The matrix shears, then
    scales, then turns; it leads from a pixel of the result to its place in the image, both counted from the middle.
    """
    turn, shear, tall, wide, down, right = jax.random.uniform(key, (6, batch), float, -1, 1)
    angle = jnp.deg2rad(hparams.rotation) * turn
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    rows, columns = 1 + hparams.scaling * tall, 1 + hparams.scaling * wide
    lean = hparams.shear * shear
    matrix = jnp.stack([cos * rows, cos * rows * lean - sin * columns, sin * rows, sin * rows * lean + cos * columns])
    return matrix.T.reshape(batch, 2, 2), hparams.shift * jnp.stack([down, right], axis=1)


def affine_places(changes: tuple[Array, Array], at: Array) -> Array:
    """The places [B, 2, H, W] under a matrix and an offset each."""
    matrix, offset = changes
    middle = (jnp.asarray(at.shape[2:], at.dtype) - 1)[None, :, None, None] / 2
    turned = jnp.einsum("bij,bjhw->bihw", matrix, at - middle, precision=jax.lax.Precision.HIGHEST)
    return turned + middle + offset[:, :, None, None]


def elastic_shifts(key: Array, shape: tuple[int, ...], hparams: Hyperparams) -> Array:
    """Smooth random displacements [B, 2, H, W] in pixels (Simard et al., ICDAR 2003).

    Uniform in -1..1 for each pixel, smoothed by a Gaussian of `elastic_width` pixels with 0 outside of the image, times
    `elastic_strength`.
    """
    field = jax.random.uniform(key, shape, float, -1, 1)
    for axis in (2, 3):
        field = jnp.moveaxis(smooth(jnp.moveaxis(field, axis, -1), hparams.elastic_width), -1, axis)
    return hparams.elastic_strength * field


def smooth(lines: Array, width: Array | float) -> Array:
    """Each line [..., N] under a Gaussian of a standard deviation, 0 beyond its ends."""
    numbers = jnp.arange(2 * lines.shape[-1] - 1) - (lines.shape[-1] - 1)  # all distances, and the weights' whole sum
    weights = jnp.exp(-0.5 * jnp.square(numbers / width))
    weights = weights / jnp.sum(weights)
    index = jnp.arange(lines.shape[-1])
    band = weights[index[:, None] - index[None] + lines.shape[-1] - 1]  # [N, N]
    return jnp.matmul(lines, band, precision=jax.lax.Precision.HIGHEST)


def sample(image: Array, at: Array) -> Array:
    """The values of [H, W, C] at places [2, H, W]."""
    return jnp.stack([map_coordinates(image[..., c], list(at), order=1) for c in range(image.shape[-1])], axis=-1)

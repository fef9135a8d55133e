"""A trained network as plain dense layers, for those who have no JAX: numpy, files for other programs, a page.

layers = fold(params, batch_stats)  # [(kernel [in, out], bias [out]), ...], relu between them
logits = apply(layers, images)  # float32 [N, C]
"""

from typing import Any

import numpy as np

from mnist_flax.config import BATCH_NORM_EPSILON

Layers = list[tuple[np.ndarray, np.ndarray]]


def fold(params: Any, batch_stats: Any) -> Layers:
    """Put each BatchNorm's running statistics into the layer in front of it; in float64, rounded to float32 at the end.

    Args:
      params: of an `MLP`, arrays.
      batch_stats: of the same.
    """
    layers = []
    for number in range(1, 1 + sum(name.startswith("dense_") for name in params)):
        kernel, bias = (np.asarray(params[f"dense_{number}"][leaf], np.float64) for leaf in ("kernel", "bias"))
        if name := f"batch_norm_{number}" if f"batch_norm_{number}" in params else "":
            scale, shift = (np.asarray(params[name][leaf], np.float64) for leaf in ("scale", "bias"))
            mean, var = (np.asarray(batch_stats[name][leaf], np.float64) for leaf in ("mean", "var"))
            factor = scale / np.sqrt(var + BATCH_NORM_EPSILON)
            kernel, bias = kernel * factor, (bias - mean) * factor + shift
        layers.append((kernel.astype(np.float32), bias.astype(np.float32)))
    return layers


def apply(layers: Layers, images: np.ndarray) -> np.ndarray:
    """Logits float32 [N, C] of uint8 images [N, ...] in 0..255."""
    return np.concatenate([_apply(layers, images[first : first + 500]) for first in range(0, len(images), 500)])


def _apply(layers: Layers, images: np.ndarray) -> np.ndarray:
    """A part that stays in the processor's cache."""
    x = images.reshape(len(images), -1).astype(np.float32) / np.float32(255)
    for kernel, bias in layers[:-1]:
        x = np.maximum(x @ kernel + bias, 0)
    return x @ layers[-1][0] + layers[-1][1]

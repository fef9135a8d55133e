"""A trained network as plain dense layers, for those who have neither JAX nor BatchNorm: the page.

layers = fold(params, batch_stats)  # [(kernel [in, out], bias [out]), ...], relu between them
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

"""A trained network as plain dense layers, without BatchNorm: for programs that have neither JAX nor Flax.

layers = fold_batch_norm(model.dense_layers(variables))  # [(kernel [in, out], bias [out]), ...], relu between them
"""

import numpy as np

from mnist_flax.model import BATCH_NORM_EPSILON, DenseLayer


def fold_batch_norm(layers: list[DenseLayer]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Put each BatchNorm's running statistics into its dense layer; in float64, rounded to float32 at the end."""
    plain = []
    for layer in layers:
        kernel, bias = np.asarray(layer.kernel, np.float64), np.asarray(layer.bias, np.float64)
        if layer.batch_norm is not None:
            norm = {name: np.asarray(leaf, np.float64) for name, leaf in layer.batch_norm.items()}
            factor = norm["scale"] / np.sqrt(norm["var"] + BATCH_NORM_EPSILON)
            kernel, bias = kernel * factor, (bias - norm["mean"]) * factor + norm["bias"]
        plain.append((kernel.astype(np.float32), bias.astype(np.float32)))
    return plain

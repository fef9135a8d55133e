"""What an export is given: a run's network at one of its steps, or the networks of an ensemble."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mnist_flax import inference
from mnist_flax.config import Config
from mnist_flax.errors import InputError
from mnist_flax.inference import LoadedNetwork
from mnist_flax.metrics import log_mean_softmax
from mnist_flax.model import BATCH_NORM_EPSILON, DenseLayer, Network
from mnist_flax.program import make_program


@dataclass(frozen=True)
class TrainedNetwork:
    """A trained network, and the settings that its file may mention."""

    config: Config
    image_shape: tuple[int, ...]  # [H, W, C]
    class_names: list[str]
    model: Network  # multiplies in float32, whatever training multiplied in
    variables: dict[str, Any]  # params and batch_stats

    def dense_layers(self) -> list[DenseLayer]:
        """The layers in order, relu between them; the last gives the logits.

        Raises:
          InputError: the network has layers of other kinds.
        """
        layers = self.model.dense_layers(self.variables)
        if layers is None:
            name = type(self.model).__name__
            raise InputError(f"this format is for networks of dense layers, and the run's is a {name}; give stablehlo")
        return layers


def trained_network(loaded: LoadedNetwork, image_shape: tuple[int, ...]) -> TrainedNetwork:
    """The network of a run."""
    config, data = loaded.run.config, loaded.run.data
    model = make_program(replace(config, precision="float32"), data).model
    return TrainedNetwork(config, image_shape, data["class_names"], model, loaded.variables)


def logits_of(network: TrainedNetwork | list[TrainedNetwork], images: np.ndarray, batch_size: int) -> np.ndarray:
    """Logits [N, C] of a network; of an ensemble, the logarithms of the mean of its networks' probabilities."""
    if not isinstance(network, list):
        return inference.logits_of(network.model, network.variables, images, batch_size)
    pairs = [(each.model, each.variables) for each in network]
    return log_mean_softmax(inference.logits_of_each(pairs, images, batch_size))


def fold_batch_norm(layers: list[DenseLayer]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Put each BatchNorm's running statistics into its dense layer: (kernel [in, out], bias [out]) float32 for each.

    In float64, rounded at the end; for programs that have neither JAX nor Flax.
    """
    plain = []
    for layer in layers:
        kernel, bias = np.asarray(layer.kernel, np.float64), np.asarray(layer.bias, np.float64)
        if layer.batch_norm is not None:
            norm = {name: np.asarray(leaf, np.float64) for name, leaf in layer.batch_norm.items()}
            factor = norm["scale"] / np.sqrt(norm["var"] + BATCH_NORM_EPSILON)
            kernel, bias = kernel * factor, (bias - norm["mean"]) * factor + norm["bias"]
        plain.append((kernel.astype(np.float32), bias.astype(np.float32)))
    return plain

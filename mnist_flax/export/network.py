"""What an export gets: a run's network at one of its steps."""

from dataclasses import dataclass
from typing import Any

from mnist_flax.config import Config
from mnist_flax.errors import InputError
from mnist_flax.model import MLP, DenseLayer


@dataclass(frozen=True)
class Network:
    """A trained network, and the settings that its file may mention."""

    config: Config
    image_shape: tuple[int, ...]
    """[H, W, C]"""
    class_names: list[str]
    model: MLP
    """Multiplies in float32, whatever training multiplied in."""
    variables: dict[str, Any]
    """params and batch_stats."""

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

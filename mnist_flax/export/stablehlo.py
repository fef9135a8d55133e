"""A network as StableHLO, by `jax.export`: compiled code for cpu, cuda and tpu, its weights inside.

    exported = jax.export.deserialize(bytearray(Path("exp1.stablehlo").read_bytes()))
    logits = exported.call(images)  # uint8 [N, 28, 28, 1], of any N -> float32 [N, 10]

Needs JAX alone to run, but one of about the same age: JAX promises to read such a file for six months, so it is for
exchange; the workdir is what to keep. The metadata is a line of JSON after what JAX reads: `tail -n 1 exp1.stablehlo`.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np

from mnist_flax.export.network import TrainedNetwork

PLATFORMS = ("cpu", "cuda", "tpu")


def write(path: Path, network: TrainedNetwork, about: dict[str, Any]) -> None:
    """Write a network, with its metadata in JSON values."""
    shape = jax.export.symbolic_shape(", ".join(["N", *map(str, network.image_shape)]))
    apply = jax.jit(lambda images: network.model.apply(network.variables, images))
    exported = jax.export.export(apply, platforms=PLATFORMS)(jax.ShapeDtypeStruct(shape, np.uint8))
    path.write_bytes(exported.serialize() + b"\n" + json.dumps(about).encode() + b"\n")


def logits(path: Path, images: np.ndarray) -> np.ndarray:
    """Logits float32 [N, C] that the file gives for uint8 images [N, H, W, C]."""
    return np.asarray(jax.export.deserialize(bytearray(path.read_bytes())).call(images))

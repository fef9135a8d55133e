"""Placement on devices: the only difference between one device and many.

    mesh = make_mesh(batch_size=128)
    state = replicate(state, mesh)
    indices = shard_batches(indices, mesh)  # int32 [K, B], B split over the devices

The compiler inserts what the devices exchange; BatchNorm's statistics are those of the whole batch.
"""

from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mnist_flax.config import InputError

Tree = TypeVar("Tree")


def make_mesh(batch_size: int) -> Mesh:
    """All devices along one axis, `data`.

    Raises:
      InputError: the batch does not divide over them.
    """
    devices = jax.devices()
    n = len(devices)
    if batch_size % n:
        lower, upper = batch_size // n * n, -(-batch_size // n) * n
        remedy = f"{lower} or {upper}" if lower else f"{upper}"
        raise InputError(f"batch_size={batch_size} must be a multiple of the {n} devices; try {remedy}")
    return Mesh(np.asarray(devices), ("data",))


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """A copy of every leaf on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard_batches(indices: np.ndarray, mesh: Mesh) -> jax.Array:
    """Split int32 [K, B] over the devices along B, filled up with -1 to a multiple of them."""
    missing = -indices.shape[1] % mesh.size
    padded = np.pad(indices, ((0, 0), (0, missing)), constant_values=-1)
    return jax.device_put(padded, NamedSharding(mesh, PartitionSpec(None, "data")))

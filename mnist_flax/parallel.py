"""Devices: placement on them, the only difference between one and many; and a cache of what was compiled for them.

    mesh = make_mesh(batch_size=128)
    state = replicate(state, mesh)
    indices = shard_batches(indices, mesh)  # int32 [K, B], B split over the devices

The compiler inserts what the devices exchange; BatchNorm's statistics are those of the whole batch.
"""

import hashlib
import os
import platform
from pathlib import Path
from typing import TypeVar

import jax
import jaxlib
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mnist_flax.config import InputError

Tree = TypeVar("Tree")


def use_compilation_cache(directory: Path) -> None:
    """Keep compiled programs between processes: the same programs, compiled once.

    Apart for each jaxlib and kind of processor: a program that meets another one can crash it.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    except OSError:
        processor = platform.processor()
    key = hashlib.sha256(f"{jaxlib.__version__} {platform.machine()} {processor}".encode()).hexdigest()[:16]
    jax.config.update("jax_compilation_cache_dir", str(directory / key))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


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


def use_cores_as_devices(processes: int) -> None:
    """Let this process's share of the CPU's cores count as one device each; accelerators are not affected."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jax.config.update("jax_num_cpu_devices", max(1, cores // processes))


def member_mesh(members: int) -> Mesh:
    """As many devices as there are members for, along one axis, `member`."""
    return Mesh(np.asarray(jax.devices()[:members]), ("member",))


def memory() -> int:
    """Bytes for arrays: of all devices or, where they are the CPU's, of this host or container."""
    if limits := [stats["bytes_limit"] for device in jax.devices() if (stats := device.memory_stats())]:
        return sum(limits)
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else ""
    return min(whole, int(text)) if text.isdecimal() else whole


def shard_members(tree: Tree, mesh: Mesh) -> Tree:
    """Split every leaf over the devices along its first axis, the members."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec("member")))


def preempted(call: int) -> bool:
    """Whether all processes are to stop behind this call, since one of them was told to.

    Between processes a signal is JAX's affair: its notice makes them agree on one call, which no handler of ours could.

    Args:
      call: counts the calls of this process from 0, one by one, alike in all processes.
    """
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(call)


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """A copy of every leaf on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard_batches(indices: np.ndarray, mesh: Mesh) -> jax.Array:
    """Split int32 [K, B] over the devices along B, filled up with -1 to a multiple of them."""
    missing = -indices.shape[1] % mesh.size
    padded = np.pad(indices, ((0, 0), (0, missing)), constant_values=-1)
    return jax.device_put(padded, NamedSharding(mesh, PartitionSpec(None, "data")))

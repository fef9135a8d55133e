"""Where arrays lie: one copy on every device, or split over the devices; and a cache of what was compiled for them.

    mesh = data_mesh(batch_size=128)
    state = replicate(state, mesh)
    indices = shard_batches(indices, mesh)  # int32 [K, B], B split over the devices

The compiler inserts what the devices exchange; BatchNorm's statistics are those of the whole batch.
"""

import contextlib
import hashlib
import os
import platform
from pathlib import Path
from typing import Any, TypeVar

import jax
import jaxlib
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mnist_flax.errors import InputError

Tree = TypeVar("Tree")


def data_mesh(batch_size: int) -> Mesh:
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


def member_mesh(members: int) -> Mesh:
    """At most as many devices as there are members, along one axis, `member`."""
    return Mesh(np.asarray(jax.devices()[:members]), ("member",))


def use_cores_as_devices(processes: int) -> None:
    """Let this process's share of the CPU's cores count as one device each; accelerators are not affected."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jax.config.update("jax_num_cpu_devices", max(1, cores // processes))


def memory() -> int:
    """Bytes for arrays: of all devices or, where they are the CPU's, of this host or container."""
    if limits := [stats["bytes_limit"] for device in jax.devices() if (stats := device.memory_stats())]:
        return sum(limits)
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([whole, *_cgroup_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))])


def _cgroup_limits(groups: Path, mounted: Path) -> list[int]:
    """The memory limits, in bytes, of this process's control groups and of all that enclose them; versions 1 and 2."""
    limits = []
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, controllers, name = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = mounted / "memory" if controllers else mounted
        inner = top / name.lstrip("/")  # outside of a container; inside, what is mounted may be the group itself
        for directory in (inner, *inner.parents):
            for file in ("memory.max", "memory.limit_in_bytes"):
                with contextlib.suppress(OSError):
                    if (text := (directory / file).read_text().strip()).isdecimal():
                        limits.append(int(text))
    return limits


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """A copy of every leaf on every device."""
    return jax.tree.map(lambda leaf: _place(leaf, NamedSharding(mesh, PartitionSpec())), tree)


def shard_batches(indices: np.ndarray, mesh: Mesh) -> jax.Array:
    """Split int32 [K, B] over the devices along B, filled up with -1 to a multiple of them."""
    missing = -indices.shape[1] % mesh.size
    padded = np.pad(indices, ((0, 0), (0, missing)), constant_values=-1)
    return _place(padded, NamedSharding(mesh, PartitionSpec(None, "data")))


def stack(trees: list[Any]) -> Any:
    """Trees of arrays as one, whose leaves have one more axis, the first."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def shard_members(tree: Tree, mesh: Mesh) -> Tree:
    """Split every leaf over the devices along its first axis, the members."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec("member")))


def addressable(tree: Any) -> Any:
    """The tree, with None for each leaf that other processes hold parts of."""
    return jax.tree.map(lambda leaf: leaf if leaf.is_fully_addressable or leaf.is_fully_replicated else None, tree)


def _place(array: np.ndarray | jax.Array, sharding: NamedSharding) -> jax.Array:
    """What every process holds whole, on the devices of all."""
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    whole = np.asarray(array)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


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

"""Devices: placement on them, the only difference between one and many; and a cache of what was compiled for them.

    mesh = make_mesh(batch_size=128)
    state = replicate(state, mesh)
    indices = shard_batches(indices, mesh)  # int32 [K, B], B split over the devices

The compiler inserts what the devices exchange; BatchNorm's statistics are those of the whole batch.
"""

import ctypes
import hashlib
import os
import platform
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import jaxlib
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mnist_flax.config import InputError, RunError

Tree = TypeVar("Tree")
Item = TypeVar("Item")

ENDED = "another process of this run has ended or cannot be reached; the same command in every process goes on"
_HEARTBEAT_TIMEOUT, _JOIN_TIMEOUT = 30, 120  # seconds
_ON_ABORT = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: _leave())


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


def join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Become one of several processes, on one host or many, that train together: JAX's devices are then those of all.

    Args:
      coordinator: host:port of process 0; None, as the others, lets JAX ask Slurm, Kubernetes, Cloud TPU or Open MPI.
      num_processes: all of them.
      process_id: from 0.

    Raises:
      InputError: nothing is given, and no cluster is found.
      RunError: the others do not come.
    """
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=_JOIN_TIMEOUT,
            heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT,
        )
    except ValueError:
        raise InputError(
            "distributed=True finds no Slurm, Kubernetes, Cloud TPU or Open MPI; "
            "give --coordinator, --num-processes and --process-id"
        ) from None
    except RuntimeError as error:
        reason = str(error).split("\n")[0][:150]
        raise RunError(f"the other processes did not come together at coordinator={coordinator!r} ({reason})") from None
    # JAX aborts a process whose coordinator dies, after several lines about its own affairs.
    ctypes.CDLL(None).signal(signal.SIGABRT, _ON_ABORT)


def _leave() -> None:
    os.write(2, f"error: {ENDED}\n".encode())
    os._exit(1)


def is_leader() -> bool:
    """Whether this process writes, for all."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Return when every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


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


def stop_signal(call: int, received: int | None) -> int | None:
    """The signal behind which to stop after this call: `received`, or that on which all processes agree.

    Between processes a signal is JAX's affair: its notice makes them agree on one call, which no handler of ours could.

    Args:
      call: counts the calls of this process from 0, one by one, alike in all processes.
      received: the signal that this process has had. With several, JAX takes SIGTERM for itself.
    """
    if jax.process_count() == 1:
        return received
    if received == signal.SIGINT:
        signal.raise_signal(signal.SIGTERM)
    return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(call) else None


def until_a_process_ends(items: Iterable[Item]) -> Iterator[Item]:
    """Pass on what is computed together.

    Raises:
      RunError: another process is gone.
    """
    try:
        yield from items
    except (ValueError, jax.errors.JaxRuntimeError) as error:  # the transports' errors have no class of their own
        if jax.process_count() == 1:
            raise
        raise RunError(ENDED) from error


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """A copy of every leaf on every device."""
    return jax.tree.map(lambda leaf: _place(leaf, NamedSharding(mesh, PartitionSpec())), tree)


def shard_batches(indices: np.ndarray, mesh: Mesh) -> jax.Array:
    """Split int32 [K, B] over the devices along B, filled up with -1 to a multiple of them."""
    missing = -indices.shape[1] % mesh.size
    padded = np.pad(indices, ((0, 0), (0, missing)), constant_values=-1)
    return _place(padded, NamedSharding(mesh, PartitionSpec(None, "data")))


def readable(tree: Any) -> Any:
    """The tree, with None for each leaf that other processes hold parts of."""
    return jax.tree.map(lambda leaf: leaf if leaf.is_fully_addressable or leaf.is_fully_replicated else None, tree)


def _place(array: np.ndarray | jax.Array, sharding: NamedSharding) -> jax.Array:
    """What every process holds whole, on the devices of all."""
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    whole = np.asarray(array)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

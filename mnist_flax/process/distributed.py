"""Several processes, on one host or many, that train one network together."""

import ctypes
import os
import signal
from collections.abc import Iterable, Iterator
from typing import TypeVar

import jax
from jax.experimental import multihost_utils

from mnist_flax.errors import InputError, RunError, first_line

Item = TypeVar("Item")

ENDED = "another process of this run has ended or cannot be reached; the same command in every process goes on"
_HEARTBEAT_TIMEOUT, _JOIN_TIMEOUT = 30, 120  # seconds
_ON_ABORT = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: _leave())


def join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Become one of several processes, on one host or many, that train together: JAX's devices are then those of all.

    Where an argument is None, JAX asks Slurm, Kubernetes, Cloud TPU or Open MPI. Raises `InputError` if none of them
    is there, and `RunError` if the other processes do not come.
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
        text = f"the other processes did not come together at coordinator={coordinator!r} ({first_line(error)})"
        raise RunError(text) from None
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


def stop_signal(call: int, received: int | None) -> int | None:
    """The signal for which to stop after this call: `received`, or that on which all processes agree.

    Several processes must stop after the same call: JAX takes SIGTERM for itself, passes it on, and makes them agree on
    one. `call` counts from 0, alike in all processes.
    """
    if jax.process_count() == 1:
        return received
    if received == signal.SIGINT:
        signal.raise_signal(signal.SIGTERM)
    return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(call) else None


def until_a_process_ends(items: Iterable[Item]) -> Iterator[Item]:
    """Pass on what is computed together; raises `RunError` when another process is gone."""
    try:
        yield from items
    except (ValueError, jax.errors.JaxRuntimeError) as error:  # the transports' errors have no class of their own
        if jax.process_count() == 1:
            raise
        raise RunError(ENDED) from error

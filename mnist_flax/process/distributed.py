"""Several processes, on one host or many, that train one network together.

join("host0:1234", num_processes=2, process_id=0)
if is_leader():
    ...  # write, for all
"""

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

    Several processes must stop after the same call: JAX passes the signal on, and makes them agree on one.

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

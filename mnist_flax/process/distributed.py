"""Let several processes, on one host or many, train one network together."""

import contextlib
import ctypes
import json
import os
import signal
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from mnist_flax.errors import InputError, RunError, first_line

Item = TypeVar("Item")

ENDED = "another process of this run has ended or cannot be reached; the same command in every process goes on"


def join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Join the other processes; JAX's devices are then those of all processes.

    An argument that is None is asked from Slurm, Kubernetes, Cloud TPU or Open MPI. Raises `InputError` if this process
    runs under none of them, and `RunError` if the other processes do not join within two minutes.
    """
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id, initialization_timeout=120, heartbeat_timeout_seconds=30
        )
    except ValueError:
        raise InputError(
            "distributed=True finds no Slurm, Kubernetes, Cloud TPU or Open MPI; "
            "give --coordinator, --num-processes and --process-id"
        ) from None
    except RuntimeError as error:
        text = f"the other processes did not come together at coordinator={coordinator!r} ({first_line(error)})"
        raise RunError(text) from None
    if jax.process_count() == 1:  # JAX has taken over SIGTERM, to make several processes agree
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    # JAX aborts a process whose coordinator dies, without a line that helps.
    ctypes.CDLL(None).signal(signal.SIGABRT, _on_abort)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _on_abort(_: int) -> None:
    os.write(2, f"error: {ENDED}\n".encode())
    os._exit(1)


def is_leader() -> bool:
    """Whether this is the process that prints and writes for all."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Return when every process has called this."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def check_same(facts: dict[str, Any]) -> None:
    """Raise `InputError` in every process unless `facts`, JSON values by name, are the same in all of them."""
    if jax.process_count() == 1:
        return
    first, *others = _gather(facts)
    for process, theirs in enumerate(others, start=1):
        for name in [*first, *(theirs.keys() - first.keys())]:
            mine, its = first.get(name), theirs.get(name)
            if mine != its:
                problem = f"is {mine!r} in process 0, but {its!r} in process {process}"
                _wait_before_leaving()
                raise InputError(f"{name} {problem}; start every process in the same way")


@contextlib.contextmanager
def refused_together() -> Iterator[None]:
    """What one process raises inside, `InputError`, `RunError` or `OSError`, is raised in all of them."""
    ours = None
    try:
        yield
    except (InputError, RunError, OSError) as error:
        if jax.process_count() == 1:
            raise
        ours = error
    if jax.process_count() == 1:
        return
    refusals = _gather(ours and [isinstance(ours, InputError), str(ours)])
    for process, (is_input, text) in ((i, refusal) for i, refusal in enumerate(refusals) if refusal):
        _wait_before_leaving()
        raise ours or (InputError if is_input else RunError)(f"process {process}: {text}")


def _gather(value: Any) -> list[Any]:
    """The JSON values of all processes, in their order."""
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    longest = int(np.max(multihost_utils.process_allgather(np.array(len(text)))))
    padded = np.pad(text, (0, longest - len(text)), constant_values=ord(" "))
    return [json.loads(row.tobytes()) for row in multihost_utils.process_allgather(padded)]


def _wait_before_leaving() -> None:
    """Return when all processes are here: who outlives process 0 by a moment is aborted, and could not say why."""
    jax.distributed.shutdown()


def stop_signal(call: int, received: int | None) -> int | None:
    """The signal that asks to stop after this call, or None; the same in all processes.

    `received` is this process's own. Several processes must stop after the same call: JAX handles SIGTERM, and makes
    them agree on a call. `call` counts from 0 in each of them.
    """
    if jax.process_count() == 1:
        return received
    if received not in (None, signal.SIGTERM):
        signal.raise_signal(signal.SIGTERM)
    return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(call) else None


def until_a_process_ends(items: Iterable[Item]) -> Iterator[Item]:
    """Yield items that all processes compute together; raises `RunError` when another process is gone."""
    try:
        yield from items
    except (ValueError, jax.errors.JaxRuntimeError) as error:  # no error class tells that a process is gone
        if jax.process_count() == 1:
            raise
        raise RunError(ENDED) from error

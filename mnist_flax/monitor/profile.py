"""A trace of some calls of a training, for TensorBoard's profiler or https://ui.perfetto.dev."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import jax

from mnist_flax.errors import first_line
from mnist_flax.process.terminal import warn

Item = TypeVar("Item")

CALLS = 3


def traced(calls: Iterable[Item], directory: Path | None) -> Iterator[Item]:
    """Pass calls on, and trace at most `CALLS` of them: not the first, which compiles.

    The trace goes to `directory`/plugins/profile/; None traces nothing. If there is none in the end, a warning says so.
    """
    if directory is None:
        yield from calls
        return
    number, problem, running = 0, None, False
    try:
        for number, call in enumerate(calls):
            yield call
            if number == 0:
                options = jax.profiler.ProfileOptions()
                options.python_tracer_level = 0  # the operations, without every Python function
                jax.profiler.start_trace(directory, profiler_options=options)
                running = True
            elif number == CALLS:
                running, problem = False, _stop()
    finally:
        problem = _stop() if running else problem
        if number == 0:
            problem = "there was no call of steps after the first; train for longer"
        if problem:
            warn(f"profile={str(directory)!r} has no trace of steps: {problem}")


def _stop() -> str | None:
    """Write the trace; what went wrong."""
    try:
        jax.profiler.stop_trace()
    except (OSError, RuntimeError) as error:
        return first_line(error)
    return None

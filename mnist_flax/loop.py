"""The loop over calls: K training steps a call, one evaluation an epoch.

    for event in run(driver, state, start=0, plan=plan, needs_state=lambda: False):
        ...  # every call ends in an event: log it, save `event.state`, or stop

One loop serves a lone run, a population, many devices and many hosts, since it never looks inside the state.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from mnist_flax.config import Config
from mnist_flax.drivers import Driver
from mnist_flax.metrics import Metrics


@dataclass(frozen=True)
class Plan:
    """How a run is cut into epochs and calls; all durations in steps."""

    steps_per_epoch: int
    epochs: int
    calls: tuple[tuple[int, int], ...]  # (first, last) of each, within an epoch
    save_at: frozenset[int]  # where in an epoch to save, its end among them


def make_plan(config: Config, steps: int) -> Plan:
    """Cut an epoch at every `checkpoint_every`, and what lies between evenly, so that few programs are compiled."""
    cuts = [*range(0, steps, config.checkpoint_every or steps), steps]
    calls = []
    for begin, end in zip(cuts, cuts[1:], strict=False):
        parts = -(-(end - begin) // config.steps_per_call)
        ends = [begin + (end - begin) * part // parts for part in range(parts + 1)]
        calls += zip(ends, ends[1:], strict=False)
    return Plan(steps, config.epochs, tuple(calls), frozenset(cuts[1:]))


class Event(NamedTuple):
    """What one call did. Valid until the loop goes on."""

    step: int  # finished updates
    epoch: int  # the running one, from 1
    state: Any  # after the call; None where the next call has it already
    metrics: Metrics  # of the call's steps, on the host
    seconds: float  # that the call added
    evaluation: Metrics | None  # after an epoch's last call
    logits: np.ndarray | None  # with it, [N, C], where the driver gives them
    evaluation_seconds: float


def run(driver: Driver, state: Any, *, start: int, plan: Plan, needs_state: Callable[[], bool]) -> Iterator[Event]:
    """Train from step `start` to the end of the plan.

    Between two saves the device never waits for the host: a call begins before the numbers of the last one are fetched.
    The state is donated. Events where the plan saves carry the state; `needs_state()` asks for it at the next one too.

    Raises `ValueError` if `start` is not at the end of one of the plan's calls.
    """
    if start % plan.steps_per_epoch not in {0, *(last for _, last in plan.calls)}:
        raise ValueError(f"start={start} is not at the end of a call")
    for epoch in range(start // plan.steps_per_epoch, plan.epochs):
        done, batches, lap = epoch * plan.steps_per_epoch, driver.batches(epoch), _Laps()
        ahead: tuple[int, Metrics] | None = None
        for first, last in plan.calls:
            if done + last <= start:
                continue
            state, metrics = driver.train(state, batches[..., first:last, :])
            if ahead:
                yield Event(ahead[0], epoch + 1, None, _fetch(ahead[1]), lap(), None, None, 0.0)
            ahead = done + last, metrics
            if last not in plan.save_at and not needs_state():
                continue
            numbers, seconds, evaluation, logits = _fetch(metrics), lap(), None, None
            state = driver.measure_batch_norm(state, batches)
            if last == plan.steps_per_epoch:
                evaluation, logits = _fetch(driver.evaluate(state))
            yield Event(done + last, epoch + 1, state, numbers, seconds, evaluation, logits, lap())
            ahead = None
            lap()  # what the caller did with the state does not count as training


def _fetch(tree: Any) -> Any:
    """Wait for the arrays and bring them to the host."""
    return jax.tree.map(np.asarray, tree)


class _Laps:
    """A stopwatch: seconds since the last look at it."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def __call__(self) -> float:
        last, self._last = self._last, time.perf_counter()
        return self._last - last


class NotFinite(NamedTuple):
    """Where a run diverged."""

    step: int  # the first whose numbers are not finite
    what: str  # in words


def not_finite(event: Event) -> NotFinite | None:
    """What is not finite in an event of one run: a step's metrics, or else the evaluation or a leaf of the state."""
    seen = {name: values for name, values in event.metrics._asdict().items() if values.dtype.kind == "f"}
    bad = ~np.all([np.isfinite(values) for values in seen.values()], axis=0)
    if bad.any():
        first = int(bad.argmax())
        step = event.step - len(bad) + first + 1
        values = ", ".join(f"{name}={float(v[first])}" for name, v in seen.items())
        return NotFinite(step, f"not finite at step {step}: {values}")
    leaves = jax.tree_util.tree_leaves_with_path(event.state)
    leaves += [] if event.evaluation is None else jax.tree_util.tree_leaves_with_path({"evaluation": event.evaluation})
    for where, leaf in leaves:
        values = np.asarray(leaf)
        if not (finite := np.isfinite(values)).all():
            worst = f"{jax.tree_util.keystr(where)} has {values[~finite].ravel()[0]}"
            return NotFinite(event.step, f"not finite after step {event.step}: {worst}")
    return None

"""The loop, and the compiled programs that it calls: K training steps a call, one evaluation an epoch.

    for event in fit(state, start=0, plan=plan, order=order, train=train, evaluate=evaluate):
        ...  # every call ends in an event: log it, save `event.state`, or stop

One loop serves a lone run, a population, many devices and many hosts, since it never looks inside the state.
"""

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from mnist_flax.config import Config, Hyperparams
from mnist_flax.metrics import Metrics
from mnist_flax.model import MLP
from mnist_flax.state import MakeTx, TrainState
from mnist_flax.steps import eval_step, take, train_step

# XLA for CPUs uses half of AVX-512 unless told, and copies a kernel that it could read before it is overwritten. Other
# processors take no notice.
COMPILER_OPTIONS: dict[str, Any] = {
    "xla_cpu_prefer_vector_width": 512,
    "xla_cpu_copy_insertion_use_region_analysis": True,
}


def scan_steps(
    state: TrainState, hparams: Hyperparams, split: tuple[Array, Array], indices: Array, *, model: MLP, make_tx: MakeTx
) -> tuple[TrainState, Metrics]:
    """K updates. `indices` is int32 [K, B], the metrics' leaves are [K]."""

    def body(state: TrainState, batch_indices: Array) -> tuple[TrainState, Metrics]:
        return train_step(state, hparams, take(split, batch_indices), model=model, make_tx=make_tx)

    return jax.lax.scan(body, state, indices)


# In one call. The state is donated: an event's state is gone once the loop goes on.
train_steps = jax.jit(
    scan_steps,
    static_argnames=("model", "make_tx"),
    donate_argnames=("state",),
    compiler_options=COMPILER_OPTIONS,
)


@functools.partial(jax.jit, static_argnames=("model",))
def eval_steps(
    state: TrainState, hparams: Hyperparams, split: tuple[Array, Array], indices: Array, *, model: MLP
) -> tuple[Metrics, Array]:
    """Every example of int32 [K, B] `indices` once; the metrics' leaves are [K], the logits [K, B, C]."""
    return jax.lax.map(lambda batch: eval_step(state, hparams, take(split, batch), model=model), indices)


@dataclass(frozen=True)
class Plan:
    """How a run is cut into epochs and calls; all durations in steps.

    Attributes:
      steps_per_epoch: updates an epoch, the short one included.
      epochs: of the run.
      calls: (first, last) of each call, within an epoch.
      save_at: where in an epoch to save, its end among them.
    """

    steps_per_epoch: int
    epochs: int
    calls: tuple[tuple[int, int], ...]
    save_at: frozenset[int]

    @property
    def total_steps(self) -> int:
        """Updates of the whole run."""
        return self.steps_per_epoch * self.epochs


def make_plan(config: Config, train_examples: int) -> Plan:
    """Cut each epoch at every `checkpoint_every`, and what lies between evenly, so that few programs are compiled."""
    steps = -(-train_examples // config.batch_size)
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
    state: Any  # behind the call; None where the next call has it already
    metrics: Metrics  # of the call's steps, on the host
    seconds: float  # that the call added
    evaluation: Metrics | None  # behind an epoch's last call
    logits: np.ndarray | None  # with it, [K, B, C], where somebody wants them
    evaluation_seconds: float


def fit(
    state: Any,
    *,
    start: int,
    plan: Plan,
    order: Callable[[int], np.ndarray],
    train: Callable[[Any, np.ndarray], tuple[Any, Metrics]],
    evaluate: Callable[[Any], tuple[Metrics, Any]],
    wanted: Callable[[], bool],
) -> Iterator[Event]:
    """Train from step `start` to the end of the plan.

    Between two saves the device never waits for the host: a call begins before the numbers of the last one are fetched.

    Args:
      state: what `train` carries on; donated.
      start: finished updates in `state`; at the end of one of the plan's calls.
      plan: the cuts.
      order: the index batches of an epoch, from 0: int32 [..., S, B].
      train: begins the steps of int32 [..., K, B] index batches.
      evaluate: scores a state; with its logits, or None.
      wanted: whether the next event is to have the state, as all do behind which the plan saves.
    """
    for epoch in range(start // plan.steps_per_epoch, plan.epochs):
        done, batches, lap = epoch * plan.steps_per_epoch, order(epoch), _Laps()
        ahead: tuple[int, Metrics] | None = None
        for first, last in plan.calls:
            if done + last <= start:
                continue
            state, metrics = train(state, batches[..., first:last, :])
            if ahead:
                yield Event(ahead[0], epoch + 1, None, _fetch(ahead[1]), lap(), None, None, 0.0)
            ahead = done + last, metrics
            if last not in plan.save_at and not wanted():
                continue
            numbers, seconds, evaluation, logits = _fetch(metrics), lap(), None, None
            if last == plan.steps_per_epoch:
                evaluation, logits = _fetch(evaluate(state))
            yield Event(done + last, epoch + 1, state, numbers, seconds, evaluation, logits, lap())
            ahead = None
            lap()  # what the caller did with the state is no training


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


def not_finite(event: Event) -> str | None:
    """The first step of a call, or else the leaf behind it, whose numbers are not finite, in words."""
    seen = {name: values for name, values in event.metrics._asdict().items() if values.dtype.kind == "f"}
    bad = ~np.all([np.isfinite(values) for values in seen.values()], axis=0)
    if bad.any():
        first = int(bad.argmax())
        values = ", ".join(f"{name}={float(v[first])}" for name, v in seen.items())
        return f"not finite at step {event.step - len(bad) + first + 1}: {values}"
    leaves = jax.tree_util.tree_leaves_with_path(event.state)
    leaves += [] if event.evaluation is None else jax.tree_util.tree_leaves_with_path({"evaluation": event.evaluation})
    for where, leaf in leaves:
        values = np.asarray(leaf)
        if not (finite := np.isfinite(values)).all():
            worst = f"{jax.tree_util.keystr(where)} has {values[~finite].ravel()[0]}"
            return f"not finite after step {event.step}: {worst}"
    return None

"""How a run is cut into calls, and the order in which the loop makes them."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mnist_flax import loop
from mnist_flax.config import Config
from mnist_flax.metrics import Metrics
from mnist_flax.program import make_program


def test_plans_cut_epochs_evenly() -> None:
    plan = loop.make_plan(Config(), 469)
    assert plan.steps_per_epoch == 469 and plan.epochs == 4
    assert {last - first for first, last in plan.calls} == {67}  # one compiled program
    assert plan.save_at == {469}
    plan = loop.make_plan(Config(checkpoint_every=100), 469)
    assert plan.save_at == {100, 200, 300, 400, 469}
    flat = [step for first, last in plan.calls for step in range(first, last)]
    assert flat == list(range(469)) and max(last - first for first, last in plan.calls) <= 67
    assert plan.save_at <= {last for _, last in plan.calls} and len(plan.calls) == 10  # no more than are needed


def test_a_short_last_batch_is_a_step_of_its_own() -> None:
    info: dict[str, Any] = {"image_shape": (28, 28, 1), "class_names": [*"0123456789"]}
    programs = [make_program(Config(batch_size=16), info | {"train_examples": n}) for n in (16, 208, 209)]
    assert [program.steps_per_epoch for program in programs] == [1, 13, 14]


def test_a_call_begins_before_the_last_ones_numbers_are_fetched() -> None:
    plan, seen = loop.Plan(6, 2, ((0, 2), (2, 4), (4, 6)), frozenset({6})), []

    def train(state: int, batches: np.ndarray) -> tuple[int, Metrics]:
        seen.append(f"call {state + len(batches)}")
        return state + len(batches), Metrics(*np.zeros((5, len(batches))))

    scores = Metrics(*np.zeros((5, 1)))
    driver: Any = SimpleNamespace(
        batches=lambda epoch: np.zeros((6, 1)), train=train, evaluate=lambda state: (scores, None),
        measure_batch_norm=lambda state, batches: state,
    )  # fmt: skip
    # The state is asked for while call 10 is running: that is the last moment before it is there.
    for event in loop.run(driver, 0, start=0, plan=plan, needs_state=lambda: seen[-1] == "event 8"):
        assert event.state in (None, event.step) and event.metrics.examples.shape == (2,)
        assert event.epoch == (1 if event.step <= 6 else 2)
        assert (event.evaluation is not None) == (event.step in (6, 12))
        seen.append(f"{'state' if event.state else 'event'} {event.step}")
    assert seen == [
        "call 2", "call 4", "event 2", "call 6", "event 4", "state 6",
        "call 8", "call 10", "event 8", "state 10", "call 12", "state 12",
    ]  # fmt: skip


def test_a_start_within_a_call_is_refused() -> None:
    """Else the steps before it would be trained twice."""
    plan = loop.Plan(6, 2, ((0, 2), (2, 6)), frozenset({6}))
    driver: Any = SimpleNamespace()
    for start in (1, 3, 9):
        with pytest.raises(ValueError, match=f"start={start} is not at the end of a call"):
            next(loop.run(driver, 0, start=start, plan=plan, needs_state=lambda: False))
    assert [*loop.run(driver, 0, start=12, plan=plan, needs_state=lambda: False)] == []

"""The history that a checkpoint carries: what a call adds to it, which step is the best, and when it is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import TINY, Tiny

from mnist_flax.errors import InputError, RunError
from mnist_flax.loop import Event
from mnist_flax.metrics import Metrics
from mnist_flax.state import TrainState
from mnist_flax.workdir import checkpoint, checksums, resume, run_info
from mnist_flax.workdir.resume import new_history

DATA: dict[str, Any] = {"image_shape": [28, 28, 1], "class_names": [*"0123456789"], "train_examples": 200,
                        "eval_examples": 9, "sha256": {}, "data_dir": "/"}  # fmt: skip
LINE = {"step": 13, "epoch": 1, "split": "eval", "accuracy": 0.9, "examples": 9}
TOTALS = dict.fromkeys(Metrics._fields, 1.0)


def sums(correct: int, steps: int = 1) -> Metrics:
    """What each of so many steps counted in ten examples."""
    return Metrics(*(np.full(steps, value) for value in (2.0, 0.5, correct, 10, 0.0)))


def test_an_epoch_is_the_sum_of_its_calls() -> None:
    """Two calls of an epoch of 13 steps, then its end with an evaluation."""
    linear = Tiny(dataclasses.replace(TINY, schedule="linear", epochs=2))
    history: dict[str, Any] = {"history": [], "best_step": None, "running": None}
    for step, steps in ((4, 4), (8, 4)):
        event = Event(step, 1, None, sums(7, steps), 1.5, None, None, 0.0)
        so_far, lines = resume.update_history(history, event, linear.config, linear.program)
        assert not lines and history["history"] == [] and so_far["examples"] == 10 * step
        assert history["running"]["seconds"] == 1.5 * step / 4
    event = Event(13, 1, None, sums(9, 5), 1.5, sums(8), None, 0.2504)  # kept to the millisecond
    so_far, lines = resume.update_history(history, event, linear.config, linear.program)
    rate = pytest.approx(1e-3 * (1 - 12 / 26))  # of the epoch's last step, before which 12 were done
    train = {"step": 13, "epoch": 1, "split": "train", "examples": 130, "seconds": 4.5, "learning_rate": rate}
    score = {"step": 13, "epoch": 1, "split": "eval", "examples": 10, "seconds": 0.25, "learning_rate": rate}
    means = {"loss": 0.25, "cross_entropy": 0.2, "l2_penalty": 0.05}
    accuracy = pytest.approx((8 * 7 + 5 * 9) / 130)
    assert lines == [train | means | {"accuracy": accuracy}, score | means | {"accuracy": 0.8}]
    assert history == {"history": lines, "best_step": 13, "running": None} and so_far["accuracy"] == accuracy


def test_the_best_step_is_the_first_of_the_highest_accuracy(tiny: Tiny) -> None:
    history: dict = {"history": [], "best_step": None, "running": None}
    for epoch, correct in enumerate((7, 9, 9, 8), start=1):
        event = Event(13 * epoch, epoch, None, sums(correct), 1.0, sums(correct), None, 0.5)
        resume.update_history(history, event, tiny.config, tiny.program)
    assert history["best_step"] == 26 and len(history["history"]) == 8


@pytest.fixture(scope="module")
def state(tiny: Tiny) -> TrainState:
    return jax.jit(tiny.init)(tiny.hparams())


def at(state: TrainState, step: int) -> TrainState:
    return state.replace(step=np.array(step, np.int32))


def test_best_means_the_best_that_was_saved(tmp_path: Path, tiny: Tiny, state: TrainState) -> None:
    """A sweep does not save its members after every epoch."""
    run = run_info.new(tiny.config, DATA)
    run_info.write(tmp_path, run)
    history, said = new_history(run), []
    for step, accuracy in ((13, 0.97), (26, 0.99), (39, 0.98)):
        line = LINE | {"step": step, "epoch": step // 13, "accuracy": accuracy}
        history = history | {"history": [*history["history"], line], "best_step": min(step, 26)}
        if step != 26:
            kept = history | {"best_step": None}
            checkpoint.save(tmp_path / "checkpoints", step, at(state, step), kept, keep=3)
    history["history"].append(LINE | {"step": 52, "epoch": 4, "accuracy": 0.97})
    checkpoint.save(tmp_path / "checkpoints", 52, at(state, 52), history, keep=3)
    assert resume.load(tmp_path, run, "best", warn=said.append).step == 39
    assert said == [f"the best step of {tmp_path}, 26, was not saved; step 39 is the best that was"]
    empty = new_history(run)
    (tmp_path / "none").mkdir()
    checkpoint.save(tmp_path / "none" / "checkpoints", 5, at(state, 5), empty, keep=3)
    with pytest.raises(InputError, match="no best checkpoint before the first evaluation"):
        resume.load(tmp_path / "none", run, "best", warn=pytest.fail)


def test_a_checkpoint_under_the_name_of_another_step_is_refused(tmp_path: Path, tiny: Tiny, state: TrainState) -> None:
    """Resumed from there, a run would train its first steps twice, or leave some out."""
    run = run_info.new(tiny.config, DATA)
    checkpoint.save(tmp_path / "checkpoints", 26, at(state, 13), new_history(run), keep=3)
    with pytest.raises(RunError, match="checkpoints/26 holds step 13: it has been renamed; give it its name back"):
        resume.load(tmp_path, run, "latest", warn=pytest.fail)


def save_with(change: dict[str, Any], path: Path, run: run_info.RunInfo, state: TrainState) -> None:
    """A checkpoint of step 13 whose history somebody has changed. Its sums are right: whoever wrote it made them."""
    history = new_history(run) | {"history": [LINE], "best_step": 13}
    checkpoint.save(path / "checkpoints", 13, at(state, 13), history, keep=3)
    file = path / "checkpoints" / "13" / "_CHECKPOINT_METADATA"
    tree = json.loads(file.read_text())
    tree["custom_metadata"] |= change
    file.write_text(json.dumps(tree))
    (path / "checkpoints" / "13" / "SHA256SUMS").write_text(checksums.of(file.parent))


@pytest.mark.parametrize(
    "change",
    [
        {"history": None},
        {"history": [7]},
        {"history": [LINE | {"accuracy": "0.9"}]},
        {"history": [7], "best_step": "13"},
        {"best_step": "13"},
        {"best_step": "13", "running": {"totals": TOTALS, "seconds": 0.5}},
        {"running": {"totals": {"examples": 1}, "seconds": 0.5}},
        {"running": {"totals": TOTALS}},
        {"running": {"totals": TOTALS, "seconds": "0.5"}},
    ],
)
@pytest.mark.parametrize("step", ["latest", "best"])
def test_a_history_that_is_not_one_is_refused(
    step: str, change: dict, tmp_path: Path, tiny: Tiny, state: TrainState
) -> None:
    save_with(change, tmp_path, run := run_info.new(tiny.config, DATA), state)
    with pytest.raises(RunError, match="checkpoints/13 holds no history of a run"):
        resume.load(tmp_path, run, step, warn=pytest.fail)


@pytest.mark.parametrize("step", ["latest", "best"])
def test_a_history_within_an_epoch_is_one(step: str, tmp_path: Path, tiny: Tiny, state: TrainState) -> None:
    running = {"totals": TOTALS, "seconds": 0.5}
    save_with({"running": running}, tmp_path, run := run_info.new(tiny.config, DATA), state)
    saved = resume.load(tmp_path, run, step, warn=pytest.fail)
    assert (saved.step, saved.history["history"], saved.history["running"]) == (13, [LINE], running)

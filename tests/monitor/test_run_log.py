"""What a run tells while it trains: the terminal, `metrics.jsonl`, and the writer process."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from conftest import Tiny

from mnist_flax.loop import Event
from mnist_flax.metrics import Metrics
from mnist_flax.monitor import run_log
from mnist_flax.monitor.async_writer import EpochDone, StepScalars
from mnist_flax.monitor.run_log import RunLog, print_run_summary
from mnist_flax.state import TrainState, inference_variables
from mnist_flax.workdir.run_info import RunInfo


class Told:
    """A terminal and a writer process that note what they are told."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.bar: list[tuple[int, str]] = []
        self.lines: list[str] = []
        self.writer: Any = SimpleNamespace(send=self.sent.append, flush=lambda: self.sent.append("flush"))
        self.progress: Any = SimpleNamespace(update=lambda *args: self.bar.append(args), say=self.lines.append)


@pytest.fixture(scope="module")
def state(tiny: Tiny) -> TrainState:
    return jax.jit(tiny.init)(tiny.hparams())


def call(step: int, steps: int, state: TrainState | None = None) -> Event:
    """Of so many steps with ten examples each; with a state it is an epoch's last."""
    examples = np.full(steps, 10)
    norms = np.arange(step - steps, step, dtype=np.float32) + 1
    sums = Metrics(examples * 2.0, examples * 0.5, np.full(steps, 7), examples, norms)
    scores = None if state is None else Metrics(*(np.array([value]) for value in (12.0, 3.0, 9, 10, 0.0)))
    return Event(step, 1, state, sums, 1.0, scores, state and np.zeros((10, 10)), 0.5)


def log_of(path: Path | None, tiny: Tiny, told: Told) -> RunLog:
    history: dict[str, Any] = {"history": [], "best_step": None, "running": None}
    return RunLog(path, tiny.config, tiny.program, history, told.writer)


def test_an_epoch_is_told_everywhere(tmp_path: Path, tiny: Tiny, state: TrainState) -> None:
    log = log_of(tmp_path, tiny, told := Told())
    for step, steps in ((4, 4), (8, 4)):
        log.update(call(step, steps), told.progress)
    assert not told.sent and not told.lines and not (tmp_path / "metrics.jsonl").exists()
    log.update(call(13, 5, state), told.progress)
    text = "epoch 1/2  loss 2.5000  accuracy 0.7000"
    assert told.bar == [(4, text), (8, text), (13, text)]
    [line] = told.lines
    assert line.startswith("epoch 1/2    3.0 s   train: loss 2.5000, accuracy 70.00%")
    assert line.endswith("test: loss 1.5000, accuracy 90.00%")
    lines = list(map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines()))
    assert lines == log.history["history"] and [line["split"] for line in lines] == ["train", "eval"]
    steps, epoch = told.sent
    assert isinstance(steps, StepScalars) and isinstance(epoch, EpochDone)
    assert steps.last == 13 and {len(values) for values in steps.values.values()} == {13}
    np.testing.assert_allclose(steps.values["loss"], 2.5)
    assert np.flatnonzero(np.isfinite(steps.values["gradient_norm"])).tolist() == [0, 10]
    assert steps.values["gradient_norm"][[0, 10]].tolist() == [1, 11]
    assert epoch.lines == lines and epoch.first_layer.shape == (16, 28, 28, 1) and epoch.logits is not None
    assert log.result() == "test accuracy: 9 of 10 (90.00%) after 1 epoch."


def test_within_a_long_epoch_steps_are_sent_now_and_then(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(run_log, "time", SimpleNamespace(monotonic=lambda: clock.now))
    log = log_of(None, tiny, told := Told())
    sent = []
    for step, clock.now in ((1, 0.5), (2, 1.0), (3, 2.5), (4, 3.0), (5, 4.0), (6, 5.0)):
        log.update(call(step, 1), told.progress)
        sent.append([(message.last, len(message.values["loss"])) for message in told.sent])
    assert sent == [[], [], [(3, 3)], [(3, 3)], [(3, 3)], [(3, 3), (6, 3)]]


def test_before_a_checkpoint_all_that_was_measured_is_sent(tiny: Tiny) -> None:
    log = log_of(None, tiny, told := Told())
    log.update(call(4, 4), told.progress)
    log.flush()
    assert isinstance(told.sent[0], StepScalars) and told.sent[0].last == 4 and told.sent[1:] == ["flush"]
    log.flush()
    assert told.sent[1:] == ["flush", "flush"]  # nothing twice


@pytest.mark.parametrize("start", [0, 13])
def test_a_terminal_of_80_columns_shows_the_whole_network(
    start: int, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    data: dict[str, Any] = {"train_examples": 200, "eval_examples": 203}
    variables = inference_variables(tiny.init(tiny.hparams()))
    print_run_summary(RunInfo(tiny.config, data, {}), tiny.program, variables, start)
    said = capsys.readouterr().out
    assert "…" not in said and max(map(len, said.splitlines()[:-2])) <= 80
    names = [line.split()[0] for line in said.splitlines() if " x " in line or "scale" in line][:4]
    assert names == ["dense_1", "dense_2", "batch_norm_2", "dense_3"]
    total = sum(leaf.size for leaf in jax.tree.leaves(variables))
    assert f"{total:,} parameters (0.1 MB), 32 of them BatchNorm's running statistics" in said
    assert "mnist: 200 training images (train), 203 for evaluation (test), uint8 28 x 28 x 1, 10 classes" in said
    assert "2 epochs of 13 steps of 16 on 8 cpu devices" in said
    assert ("; resumed at step 13" in said) == (start == 13)

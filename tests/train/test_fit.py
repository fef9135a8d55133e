"""`fit` from Python does what the command does."""

import dataclasses
import json
import os
import shlex
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import Command

import mnist_flax
from mnist_flax.compare import listing
from mnist_flax.errors import InputError, RunError
from mnist_flax.process.signals import Interrupts
from mnist_flax.workdir import claim, run_info

CONFIG = mnist_flax.Config(widths=(16, 16), batch_size=16, epochs=2, steps_per_call=4, train_split="train[:200]",
                           eval_split="test[:203]")  # fmt: skip
PLAIN: dict[str, Any] = {"figures": False, "tensorboard": False}


def lasting(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name != "seconds"} for line in history]


@pytest.mark.usefixtures("dataset")
def test_fit_is_the_command(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = mnist_flax.fit(CONFIG, tmp_path / "exp", **PLAIN)
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    for ours, theirs in zip(lasting(run.history), lasting(lines), strict=True):  # other devices, other roundings
        assert ours.pop("split") == theirs.pop("split") and ours == pytest.approx(theirs, rel=1e-3)
    assert {path.name for path in run.path.iterdir()} == {path.name for path in finished.iterdir()}
    model, variables = run.load()
    assert model.apply(variables, np.zeros((2, 28, 28), np.uint8)).shape == (2, 10)
    assert mnist_flax.fit(CONFIG, tmp_path / "exp", **PLAIN).history == run.history  # it was finished
    out, err = capsys.readouterr()
    assert not out and not err
    mnist_flax.fit(CONFIG, tmp_path / "exp", quiet=False, **PLAIN)
    assert "is finished: nothing to do" in capsys.readouterr().out
    with pytest.raises(InputError, match="is a run with other settings: seed=1"):
        mnist_flax.fit(mnist_flax.Config(**vars(CONFIG) | {"hparams": mnist_flax.Hyperparams(seed=1)}), run.path)


@pytest.mark.usefixtures("dataset")
def test_an_interrupt_saves_and_the_same_call_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, straight = signal.getsignal(signal.SIGINT), mnist_flax.fit(CONFIG, tmp_path / "straight", **PLAIN)
    from mnist_flax.monitor.run_log import RunLog

    update = RunLog.update

    def interrupt(self: RunLog, event: Any, progress: Any) -> None:
        update(self, event, progress)
        if event.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="step .* is saved in .*exp"):
        patch.setattr(RunLog, "update", interrupt)
        mnist_flax.fit(CONFIG, tmp_path / "exp", **PLAIN)
    [saved] = (tmp_path / "exp/checkpoints").iterdir()
    assert 3 <= int(saved.name) < 13
    assert lasting(mnist_flax.fit(CONFIG, tmp_path / "exp", **PLAIN).history) == lasting(straight.history)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.usefixtures("dataset")
def test_an_interrupt_in_the_last_call_reaches_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mnist_flax.monitor.run_log import RunLog

    update = RunLog.update

    def interrupt(self: RunLog, event: Any, progress: Any) -> None:
        update(self, event, progress)
        if event.step == 26:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="exp is finished and saved"):
        patch.setattr(RunLog, "update", interrupt)
        mnist_flax.fit(CONFIG, tmp_path / "exp", **PLAIN)
    assert len(mnist_flax.fit(CONFIG, tmp_path / "exp", **PLAIN).history) == 4


@pytest.mark.usefixtures("dataset")
def test_a_run_that_diverged_is_listed_as_that_until_it_is_started_again(tmp_path: Path) -> None:
    hot = dataclasses.replace(CONFIG, hparams=mnist_flax.Hyperparams(learning_rate=1e30))
    for _ in range(2):
        with pytest.raises(RunError, match="not finite"):
            mnist_flax.fit(hot, tmp_path / "exp", **PLAIN)
        assert [run.state for run in listing.find(tmp_path)] == ["diverged"]
    with claim.claim(tmp_path / "exp", run_info.read(tmp_path / "exp")):
        pass
    assert [run.state for run in listing.find(tmp_path)] == ["stopped"]


@pytest.mark.usefixtures("dataset")
def test_a_card_is_removed_when_epochs_are_added(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a name in UTF-8, as checkpoints need"):
        mnist_flax.fit(CONFIG, tmp_path / os.fsdecode(b"exp\xff"), **PLAIN)
    assert not [*tmp_path.iterdir()]
    path = tmp_path / "\N{CAT FACE}"
    assert len(mnist_flax.fit(CONFIG, path, **PLAIN).history) == 4
    assert "\N{CAT FACE}" in (path / "README.md").read_text(encoding="utf-8")
    more = dataclasses.replace(run_info.read(path), config=dataclasses.replace(CONFIG, epochs=3))
    with claim.claim(path, more):
        assert not (path / "README.md").exists()


def test_the_second_interrupt_is_python_s() -> None:
    interrupts = Interrupts()
    with pytest.raises(KeyboardInterrupt), interrupts.deferred():
        signal.raise_signal(signal.SIGINT)
        assert interrupts.received == signal.SIGINT
        signal.raise_signal(signal.SIGINT)


def test_another_thread_handles_no_signals() -> None:
    """Python would refuse it."""
    entered = []

    def enter() -> None:
        with Interrupts().deferred():
            entered.append(True)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered


def test_a_card_tells_what_the_run_is(finished: Path, command: Command, tmp_path: Path) -> None:
    text = (finished / "README.md").read_text()
    report = json.loads(command("evaluate", "--workdir", finished, "--no-figures", "--json").stdout)
    low, high = report["accuracy_interval"]
    assert f"accuracy {report['accuracy']:.2%} (95 % interval {low:.2%} to {high:.2%})" in text
    assert f"calibration error {report['expected_calibration_error']:.4f}" in text
    for name, share in zip(report["class_names"], report["per_class_accuracy"], strict=True):
        assert f"| {name} | {share:.2%} |" in text
    assert "784-16-16-10" in text and "| `widths` | `16 16` |" in text and "learning_rate" not in text
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["model-index"][0]["results"][0]["metrics"] == [{"type": "accuracy", "value": report["accuracy"]}]
    [line] = [line for line in text.splitlines() if line.startswith("python -m mnist_flax.train")]
    again = command("train", *shlex.split(line)[3:], cwd=finished.parent)
    assert "is finished: nothing to do" in again.stdout  # the command has every setting of this run

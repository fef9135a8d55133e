"""One process of a sweep: what it claims, trains, records, keeps and shows."""

import contextlib
import dataclasses
import functools
import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mnist_flax.config import Config
from mnist_flax.data import datasets
from mnist_flax.errors import RunError
from mnist_flax.process.signals import Stopped
from mnist_flax.sweep import members, supervisor
from mnist_flax.sweep import worker as worker_module
from mnist_flax.sweep.experiment import override
from mnist_flax.sweep.stages import Stage
from mnist_flax.sweep.storage import open_journal
from mnist_flax.sweep.trial_queue import TrialQueue
from mnist_flax.sweep.worker import Worker
from mnist_flax.workdir import checkpoint, claim, run_info

BASE = Config(widths=(8,), batch_norm_layers=(), l2_layers=(), batch_size=50, epochs=1,
              train_split="train[:100]", eval_split="test[:50]")  # fmt: skip


def test_members_are_trained_recorded_and_kept(tmp_path: Path, dataset: datasets.Dataset) -> None:
    """Four members, three of them at once, the best two to be kept; one diverges."""
    rates = (1e-2, 1e30, 1e-3, 1e-9)
    planned: dict[str, dict[str, Any]] = {
        f"{rate}": {"overrides": {"learning_rate": rate, "seed": seed}} for seed, rate in enumerate(rates)
    }
    with TrialQueue(open_journal(tmp_path), "selection") as queue:
        config = functools.partial(override, BASE)
        stage = Stage("selection", cast(Any, None), queue, tmp_path / "members", planned, config, keeps=2)
        shown, written = [], []
        progress: Any = SimpleNamespace(
            begin=lambda stage: shown.append(("begin", stage.left())),
            update=lambda event, members: shown.append((event.step, len(members))),
        )
        signals: Any = SimpleNamespace(received=None)
        worker = Worker(stage, dataset, tmp_path, lambda _: 2, progress, signals)
        worker.work(3, lambda: written.append(stage.left()))
        assert shown == [("begin", 4), (2, 2), ("begin", 2), (2, 1), ("begin", 1), (2, 1)]
        assert written == [1, 0] and stage.left() == 0
        done = stage.finished()
        assert [queue.attribute(trial, "diverged_at") for trial in done] == [None, 2, None, None]
        assert [queue.objective(trial) is None for trial in done] == [False, True, False, False]
        for trial in done:
            history = queue.attribute(trial, "history")
            scores = [line["accuracy"] for line in history if line["split"] == "eval"]
            assert queue.objective(trial) == (scores[-1] if scores else None)
            assert queue.attribute(trial, "seconds") == pytest.approx(
                sum(line["seconds"] for line in history), abs=1e-3
            )
            assert queue.attribute(trial, "workdir") == f"members/{trial.number:04d}"
        kept = {stage.member_dir(trial) for trial in stage.kept()}
    assert {*(tmp_path / "members").iterdir()} == kept
    assert all(checkpoint.steps(path / "checkpoints") == [2] for path in kept)


RATES: dict[str, dict[str, Any]] = {f"{rate}": {"overrides": {"learning_rate": rate}} for rate in (1e-2, 1e-3)}


def stage_of(path: Path, queue: TrialQueue, base: Config = BASE) -> Stage:
    """Two members, both to be kept."""
    return Stage("selection", cast(Any, None), queue, path / "members", RATES, functools.partial(override, base), 2)


def held(stage: Stage, trial: Any, dataset: datasets.Dataset) -> contextlib.ExitStack:
    """Its directory is in use, as if by a process that cannot be seen from here, until the stack is closed."""
    config = stage.config(trial.user_attrs["overrides"])
    info = datasets.dataset_info(dataset, config.train_split, config.eval_split, stage.path)
    stack = contextlib.ExitStack()
    stack.enter_context(claim.claim(stage.member_dir(trial), run_info.new(config, info)))
    return stack


@pytest.fixture
def idle() -> SimpleNamespace:
    """No signal has come, and nobody looks at the progress."""
    progress = SimpleNamespace(begin=lambda stage: None, update=lambda event, members: None)
    return SimpleNamespace(progress=progress, signals=SimpleNamespace(received=None))


def test_a_member_of_a_dead_worker_is_trained_once_its_directory_is_free(
    tmp_path: Path, dataset: datasets.Dataset, idle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    with TrialQueue(open_journal(tmp_path), "selection") as queue:
        other, stage = TrialQueue(open_journal(tmp_path), "selection"), stage_of(tmp_path, queue)
        other.worker = queue.worker.rpartition(" ")[0] + f" {dead.pid}"
        other.enqueue(RATES)
        stack, waited, slept = held(stage, other.claim(1)[0], dataset), [], []

        def sleep(seconds: float) -> None:
            assert waited == [1] and not slept  # the user knows what the worker waits for
            slept.append(seconds)
            stack.close()

        idle.progress.wait = waited.append
        monkeypatch.setattr(worker_module, "time", SimpleNamespace(sleep=sleep))
        Worker(stage, dataset, tmp_path, lambda _: 9, idle.progress, idle.signals).work(9, lambda: None)
        assert slept and [trial.number for trial in stage.finished()] == [2, 1]
        assert {path.name for path in stage.path.iterdir()} == {"0000", "0001"}


def test_a_member_whose_directory_is_in_use_comes_later(
    tmp_path: Path, dataset: datasets.Dataset, idle: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with TrialQueue(open_journal(tmp_path), "selection") as queue:
        queue.enqueue(RATES)
        stage, written = stage_of(tmp_path, queue), []
        stack = held(stage, queue.study.trials[0], dataset)

        def write() -> None:
            written.append(stage.left())
            assert written in ([1], [1, 0])  # it waited before it asked again

        monkeypatch.setattr(worker_module, "time", SimpleNamespace(sleep=lambda _: stack.close()))
        worker = Worker(stage, dataset, tmp_path, lambda _: 9, idle.progress, idle.signals)
        worker.work(9, write)
        assert stage.left() == 0 and [trial.number for trial in stage.finished()] == [2, 1]
    assert "0000' is in use by pid" in (said := capsys.readouterr().err) and said.count("warning: ") == 1


def test_a_signal_saves_the_running_members_and_the_next_worker_goes_on(
    tmp_path: Path, dataset: datasets.Dataset, idle: Any
) -> None:
    with TrialQueue(open_journal(tmp_path), "selection") as queue:
        stage = stage_of(tmp_path, queue, dataclasses.replace(BASE, epochs=3))
        worker, steps = Worker(stage, dataset, tmp_path, lambda _: 9, idle.progress, idle.signals), []

        def update(event: Any, _: object) -> None:
            steps.append(event.step)
            reported = [len(trial.intermediate_values) for trial in queue.running()]
            assert reported == [event.step // 2] * 2  # everybody sees how far they are
            idle.signals.received = signal.SIGTERM if steps == [2, 4] else None

        idle.progress.update = update
        text = f"stopped by SIGTERM: the 2 running members are saved in {stage.path}; the same command goes on"
        with pytest.raises(Stopped, match=text) as stopped:
            worker.work(9, lambda: pytest.fail("there are no results"))
        assert stopped.value.exit_code == 143 and not queue.running() and stage.left() == 2
        assert [checkpoint.steps(path / "checkpoints") for path in stage.path.iterdir()] == [[4], [4]]
        with pytest.raises(Stopped, match="nothing was running"):
            worker.work(9, lambda: None)
        idle.signals.received = None
        worker.work(9, lambda: None)
        assert steps == [2, 4, 6] and stage.left() == 0
        history = queue.attribute(stage.finished()[0], "history")
        assert [line["step"] for line in history if line["split"] == "eval"] == [2, 4, 6]


def test_a_signal_does_not_wait_for_the_end_of_the_epoch(tmp_path: Path, dataset: datasets.Dataset, idle: Any) -> None:
    """One member, ten steps of a call each: the call that runs when the signal comes is the last."""
    with TrialQueue(open_journal(tmp_path), "selection") as queue:
        stage = stage_of(tmp_path, queue, dataclasses.replace(BASE, batch_size=10, steps_per_call=1))
        stage, steps = dataclasses.replace(stage, members={"0.01": RATES["0.01"]}), []

        def update(event: Any, _: object) -> None:
            steps.append((event.step, event.state is None))
            idle.signals.received = signal.SIGTERM if event.step == 3 else idle.signals.received

        idle.progress.update = update
        with pytest.raises(Stopped):
            Worker(stage, dataset, tmp_path, lambda _: 9, idle.progress, idle.signals).work(9, lambda: None)
        assert steps == [(1, True), (2, True), (3, True), (4, False)]
        assert [checkpoint.steps(path / "checkpoints") for path in stage.path.iterdir()] == [[4]]


def test_a_signal_in_the_last_call_loses_no_result(tmp_path: Path, dataset: datasets.Dataset, idle: Any) -> None:
    with TrialQueue(open_journal(tmp_path), "selection") as queue:
        stage, written = stage_of(tmp_path, queue), []

        def update(event: Any, _: object) -> None:
            idle.signals.received = signal.SIGTERM if event.step == 2 else None

        idle.progress.update = update
        with pytest.raises(Stopped, match="nothing was running"):
            worker = Worker(stage, dataset, tmp_path, lambda _: 9, idle.progress, idle.signals)
            worker.work(9, lambda: written.append(stage.left()))
        assert written == [0]


def test_metrics_that_a_full_disk_kept_from_being_written_are_written_later(
    tmp_path: Path, dataset: datasets.Dataset, idle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their checkpoint was saved just before, so the members have no step left."""

    def full(path: Path, lines: object) -> None:
        raise OSError(28, "No space left on device", path)

    with TrialQueue(open_journal(tmp_path), "selection") as queue:
        stage = stage_of(tmp_path, queue)
        worker = Worker(stage, dataset, tmp_path, lambda _: 9, idle.progress, idle.signals)
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
            patch.setattr(members, "write_lines", full)
            worker.work(9, lambda: None)
        assert [path.name for path in stage.path.glob("*/checkpoints/*")] == ["2"]
        worker.work(9, lambda: None)
        for trial in stage.finished():
            lines = (stage.member_dir(trial) / "metrics.jsonl").read_text().splitlines()
            assert list(map(json.loads, lines)) == queue.attribute(trial, "history")


@pytest.mark.parametrize(("codes", "error"), [([143, 0], Stopped), ([143, 1], RunError)])
def test_a_stopped_supervisor_says_what_its_workers_did(
    codes: list[int], error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (log := tmp_path / "worker-2.log").write_text("error: no space left\n")
    (tmp_path / "worker-1.log").write_text("")

    class Pool(supervisor._Workers):
        def start(self) -> None:
            pass

        def running(self) -> bool:
            return True

        def stop(self, signum: int) -> list[int]:
            return codes

    monkeypatch.setattr(supervisor, "_Workers", Pool)
    signals: Any = SimpleNamespace(received=signal.SIGTERM, deferred=contextlib.nullcontext)
    sweep: Any = SimpleNamespace(path=log.parent)
    with pytest.raises(error, match="no space left" if error is RunError else "what was running is saved"):
        supervisor.train(sweep, 2, lambda: None, signals)

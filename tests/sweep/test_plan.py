"""What `--dry-run` and the estimate of the remaining time say, and that planning writes nothing."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from conftest import Command
from test_growth import GRID, SEARCH, write

from mnist_flax.config import Config
from mnist_flax.data import datasets
from mnist_flax.sweep import cost, experiment_file, plan, remaining
from mnist_flax.sweep.cost import Cost, Costs, Population
from mnist_flax.sweep.experiment import Experiment
from mnist_flax.sweep.remaining import Remaining
from mnist_flax.sweep.stages import Sweep, population_key
from mnist_flax.sweep.storage import open_database, open_journal
from mnist_flax.sweep.trial_queue import TrialQueue

MEMBERS = tuple({"widths": [8 * (1 + n // 3), 8], "seed": n} for n in range(5))  # 3 of one program, 2 of another
BASE = Config(epochs=2, train_split="train[:100]", eval_split="train[100:200]")


def sweep_of(tmp_path: Path, storage: optuna.storages.BaseStorage, **changes: Any) -> Sweep:
    final = {"train_split": "train[200:400]", "eval_split": "test"}
    experiment = Experiment(tmp_path / "study.py", "Which?", BASE, MEMBERS, None, 5, final, 2, lambda overrides: "")
    experiment = dataclasses.replace(experiment, **changes)
    return Sweep(experiment, tmp_path, TrialQueue(storage, "selection"), TrialQueue(storage, "final"))


def finish(queue: TrialQueue, trial: optuna.Trial) -> None:
    history = [{"split": "eval", "accuracy": 0.5, "step": 2, "epoch": 1}]
    attributes: dict[str, Any] = {"history": history, "seconds": 1.0, "versions": {}, "commit": "", "diverged_at": None}
    queue.finish(trial, [0.5, 0.5], 0.5, attributes | {"workdir": "members/0000"})


def test_claims_are_cut_as_workers_cut_them(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, open_journal(tmp_path))
    first, second = (population_key(sweep.experiment.config(MEMBERS[n])) for n in (0, 3))
    expected = [[Population(first, 3, 0), Population(second, 1, 0)], [Population(second, 1, 0)]]
    assert plan.claims(sweep.selection(), 4, lambda config: 9) == expected
    small = [[Population(first, 2, 0), Population(first, 1, 0), Population(second, 1, 0)], [Population(second, 1, 0)]]
    assert plan.claims(sweep.selection(), 4, lambda config: 2) == small
    sweep.selection_queue.enqueue(sweep.selection().members)
    for trial in sweep.selection_queue.claim(4):
        finish(sweep.selection_queue, trial)
    assert plan.claims(sweep.selection(), 4, lambda config: 9) == [[Population(second, 1, 0)]]
    finals = plan._final(sweep)  # either program may be chosen
    assert [plan.claims(each, 4, lambda config: 9)[0][0].config.widths for each in finals] == [(8, 8), (16, 8)]
    assert {len(each.members) for each in finals} == {2}


def test_time_is_that_of_the_last_worker(monkeypatch: pytest.MonkeyPatch, dataset: datasets.Dataset) -> None:
    measured = Cost(compile=10.0, step=1.0, example=0.01, epoch=0.0, save=0.0, checkpoint=1)
    monkeypatch.setattr(cost, "measure", lambda *_: measured)
    monkeypatch.setattr(cost, "_OVERHEAD", 0.0)
    devices = [SimpleNamespace(platform="gpu")]
    monkeypatch.setattr(cost, "jax", SimpleNamespace(devices=lambda: devices, device_count=lambda: 1))
    costs, config = Costs(dataset, Path()), population_key(BASE)
    claims = [[Population(config, 1, 0)]] * 3
    alone = 2 * (1 * 1.0 + 100 * 0.01)  # two epochs of one step and 100 examples of evaluation
    assert costs.makespan(claims, 1, 3) == pytest.approx(10 + 3 * alone)
    assert costs.makespan(claims, 2, 3) == pytest.approx(2 * (10 + 2 * alone))  # they share one device
    assert costs.makespan([[Population(config, 4, 1)]], 1, 3) == pytest.approx(10 + alone / 2)  # an epoch is done


def test_nothing_is_written_and_the_plan_fits_on_a_narrow_terminal(tmp_path: Path, command: Command) -> None:
    study, path = write(tmp_path / "study.py", GRID, 2), tmp_path / "sweep"
    database = tmp_path / "trials.db"
    for flags in ((), ("--storage", f"sqlite:///{database}")):
        result = command("sweep", study, "--workdir", path, "--dry-run", *flags)
        assert (result.returncode, result.stderr) == (0, "")
        assert {*tmp_path.iterdir()} == {study}
    assert max(map(len, result.stdout.splitlines())) <= 80
    text = " ".join(result.stdout.split())
    assert "selection 6 members, trained on train[:200], evaluated on train[200:400]; 0 done" in text
    assert "final 2 members (1 chosen configuration, 2 fresh seeds), trained on train[400:600], evaluated on" in text
    for words in ("1 program, 1 population of 6", "time about", "with 1 worker", "memory about", "disk about"):
        assert words in text


def test_a_snapshot_is_a_copy(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'x.db'}"
    database = open_database(url)
    for place, storage in ((None, open_journal(tmp_path)), (url, database)):
        with TrialQueue(storage, "selection") as queue:
            queue.enqueue({"a": {"overrides": {}}, "b": {"overrides": {}}})
            finish(queue, queue.claim(1)[0])
        copy = plan.snapshot(tmp_path, place, ["selection", "final"])
        with TrialQueue(copy, "selection") as theirs:
            assert [*theirs.finished()] == ["a"] and theirs.claim(9)
        assert not queue.running()
    database.engine.dispose()  # type: ignore[attr-defined]


def test_the_time_left_is_that_of_both_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 100 examples a second; what was restored from checkpoints says nothing about the pace."""
    sweep, now = sweep_of(tmp_path, open_journal(tmp_path)), [0.0]
    monkeypatch.setattr(remaining, "time", SimpleNamespace(monotonic=lambda: now[0]))
    left, queue = Remaining(sweep, {"train": 60000, "test": 10000}), sweep.selection_queue
    queue.enqueue(sweep.selection().members)
    trials = queue.claim(5)
    assert left() is None
    trials[0].set_user_attr("restored_epochs", 1)
    for trial in trials:
        queue.report_accuracies(trial, [0.5])
    now[0] = 50.0
    assert left() is None  # it was compiled in this time
    for trial in trials[1:]:
        queue.report_accuracies(trial, [0.5, 0.5])
    now[0] += 4.0
    assert left() == pytest.approx((100 + 2 * 2 * 200) / 100)  # an epoch of the first member, and the final test
    for trial in trials:
        finish(queue, trial)
    now[0] += 1.0
    assert left() == pytest.approx(2 * 2 * 200 / 100)


def test_a_number_of_trials_that_differs_from_the_files_is_mentioned(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    study = write(tmp_path / "study.py", SEARCH, 1)
    assert experiment_file.load(study, 3).trials == 3 and capsys.readouterr().out == ""
    assert experiment_file.load(study, 7).trials == 7
    assert capsys.readouterr().out == "trials=7, from --trials, holds; TRIALS=3 in study.py does not\n"

"""The two stages of a sweep: their members in order, what is kept, and the rows of their results."""

from pathlib import Path
from typing import Any

import pytest

from mnist_flax.config import Config
from mnist_flax.sweep import results
from mnist_flax.sweep.adapt import Halving
from mnist_flax.sweep.experiment import Experiment, overrides_key
from mnist_flax.sweep.stages import Sweep
from mnist_flax.sweep.storage import open_journal
from mnist_flax.sweep.trial_queue import TrialQueue

GRID = ({"widths": [8, 8]}, {"widths": [16, 8]}, {"widths": [8, 8], "l2": 0.1}, {"widths": [16, 8], "l2": 0.1})
ACCURACIES = {0: 0.5, 1: 0.9, 2: 0.7, 3: 0.8}  # by number, in the order of the queue


def finish(queue: TrialQueue, accuracy: dict[int, float]) -> None:
    """Claim all that wait, and finish them as a worker does; an accuracy of 0 means that it diverged."""
    for trial in queue.claim(99):
        score, overrides = accuracy.get(trial.number, 0.5), trial.user_attrs["overrides"]
        history = [{"split": "eval", "accuracy": score, "step": 2, "epoch": 1}]
        attributes: dict[str, Any] = {"history": history, "seconds": 1.0, "versions": {}, "commit": None}
        attributes |= {"diverged_at": None, "workdir": f"members/{trial.number:04d}", "overrides": overrides}
        queue.finish(trial, [score], score or None, attributes)


def test_both_stages(tmp_path: Path) -> None:
    experiment = Experiment(
        tmp_path / "study.py", "Which?", Config(), GRID, None, 4, {"train_split": "train"}, 2, overrides_key
    )
    storage = open_journal(tmp_path)
    with TrialQueue(storage, "selection") as selecting, TrialQueue(storage, "final") as testing:
        sweep = Sweep(experiment, tmp_path, selecting, testing)
        stage = sweep.current()
        assert (stage.name, stage.path, stage.left(), stage.keeps) == ("selection", tmp_path / "members", 4, 3)
        order = [GRID[0], GRID[2], GRID[1], GRID[3]]  # those of one population next to each other
        assert stage.members == {overrides_key(each): {"overrides": each} for each in order}
        assert [*stage.members] == [overrides_key(each) for each in order]
        assert stage.config({"l2": 0.1}).train_split == Config().train_split
        selecting.enqueue(stage.members)
        finish(selecting, ACCURACIES)
        assert [trial.number for trial in stage.kept()] == [1, 3, 2] and stage.left() == 0
        rows = sweep.rows()
        assert [row["workdir"] for row in rows] == [None, "members/0001", "members/0002", "members/0003"]
        assert [(row["stage"], row["member"], row["trial"]) for row in rows] == [("selection", i, i) for i in range(4)]
        assert [row["value"] for row in rows] == [*ACCURACIES.values()]
        assert [row["overrides"] for row in rows] == order and rows[0]["method"] == overrides_key(order[0])
        stage = sweep.current()
        seeds = experiment.fresh_seeds({0})
        assert (stage.name, stage.path, stage.left(), stage.keeps) == ("final", tmp_path / "final", 8, 8)
        assert {member["overrides"]["seed"] for member in stage.members.values()} == {*seeds} and len(seeds) == 2
        assert stage.config({"l2": 0.1}).train_split == "train"
        testing.enqueue(stage.members)
        finish(testing, {})
        final = [row for row in sweep.rows() if row["stage"] == "final"]
        assert [row["member"] for row in final] == [*range(8)] and sweep.current().left() == 0


def test_a_member_that_diverged_keeps_no_directory(tmp_path: Path) -> None:
    experiment = Experiment(tmp_path / "study.py", "", Config(), GRID, None, 4, {}, 0, overrides_key)
    storage = open_journal(tmp_path)
    with TrialQueue(storage, "selection") as queue, TrialQueue(storage, "final") as testing:
        stage = (sweep := Sweep(experiment, tmp_path, queue, testing)).selection()
        queue.enqueue(stage.members)
        finish(queue, {0: 0.0, 1: 0.9, 2: 0.0, 3: 0.8})
        assert [trial.number for trial in stage.kept()] == [1, 3]
        assert [row["workdir"] for row in sweep.rows()] == [None, "members/0001", None, "members/0003"]


def test_a_long_lineage_is_whole(tmp_path: Path) -> None:
    """It is stored in pieces."""
    experiment = Experiment(tmp_path / "study.py", "", Config(), GRID[:1], None, 1, {}, 0, overrides_key)
    storage = open_journal(tmp_path)
    with TrialQueue(storage, "selection") as queue, TrialQueue(storage, "final") as testing:
        sweep = Sweep(experiment, tmp_path, queue, testing)
        queue.enqueue(sweep.selection().members)
        lineage = [{"step": step} for step in range(250)]
        [trial] = queue.claim(1)
        attributes: dict[str, Any] = {
            "history": [],
            "seconds": 1.0,
            "versions": {},
            "commit": None,
            "diverged_at": None,
        }
        queue.finish(trial, [0.5], 0.5, attributes | {"workdir": "members/0000", "lineage": lineage})
        assert sweep.rows()[0]["lineage"] == lineage


def test_seeds_that_wait_for_each_other_are_next_to_each_other(tmp_path: Path) -> None:
    grid = tuple({"l2": l2, "seed": seed} for seed in range(2) for l2 in (0.2, 0.1))
    for across, order in (("seed", (0, 2, 1, 3)), (None, (0, 1, 2, 3))):
        adapt = Halving(rungs=(1,), across=across)
        experiment = Experiment(tmp_path / "s.py", "", Config(), grid, None, 4, {}, 0, overrides_key, adapt=adapt)
        queue: Any = None
        members = Sweep(experiment, tmp_path, queue, queue).selection().members
        assert [each["overrides"] for each in members.values()] == [grid[i] for i in order]


def test_a_search_has_as_many_members_as_were_ever_queued(tmp_path: Path) -> None:
    with TrialQueue(open_journal(tmp_path), "selection") as queue:
        for trials, members in ((3, 3), (2, 3), (4, 4)):
            experiment = Experiment(tmp_path / "s.py", "", Config(), (), lambda _: {}, trials, {}, 0, overrides_key)
            stage = Sweep(experiment, tmp_path, queue, queue).selection()
            assert len(stage.members) == members
            queue.enqueue(stage.members)


def test_tables_are_written_in_a_fiftieth_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(results.time, "monotonic", lambda: clock[0])
    written: list[float] = []

    def write(_: object) -> None:
        written.append(clock[0])
        clock[0] += 2.0  # that long it takes

    monkeypatch.setattr(results, "write", write)
    call = results.now_and_then(None)  # type: ignore
    for _ in range(300):
        call()
        clock[0] += 1.0
    assert written == [100.0, 202.0, 304.0]  # at once, then 100 s after the end of the last

"""Asynchronous successive halving: who goes on follows from the stored order, and lanes change nobody's numbers."""

import dataclasses
import json
import signal
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import optuna
import pytest
from conftest import PATIENCE, TINY, Command, assert_trees_equal
from test_members import untimed
from test_sweep import rows_of, start

from mnist_flax import compiled
from mnist_flax.config import Config, Hyperparams
from mnist_flax.data import datasets
from mnist_flax.errors import InputError
from mnist_flax.process.signals import Stopped
from mnist_flax.sweep import experiment_file, halving, members
from mnist_flax.sweep.adapt import Halving
from mnist_flax.sweep.decisions import Decisions
from mnist_flax.sweep.experiment import Experiment
from mnist_flax.sweep.halving import HalvingWorker
from mnist_flax.sweep.lanes import Lanes
from mnist_flax.sweep.rungs import Report, ReportLog, Team, standing
from mnist_flax.sweep.stages import Stage, Sweep
from mnist_flax.sweep.storage import open_journal
from mnist_flax.sweep.trial_queue import TrialQueue
from mnist_flax.workdir import checkpoint, run_info

BASE = Config(widths=(8,), batch_norm_layers=(), l2_layers=(), batch_size=50, epochs=4,
              train_split="train[:100]", eval_split="test[:50]")  # fmt: skip
GRID = tuple({"learning_rate": 10 ** (-4.5 + n / 3), "seed": n % 2} for n in range(9))


def alone(number: int) -> Team:
    return Team("", f"{number}", 1)


def test_a_member_goes_on_if_it_is_among_the_best_that_have_got_there() -> None:
    """By its own batch and the ones before; later ones, other epochs and a repeated report change nothing."""
    batches = [
        [Report(0, 1, 0.5), Report(1, 1, 0.6), Report(2, 1, 0.4)],
        [Report(1, 2, 0.1), Report(3, 1, 0.7), Report(0, 1, 0.99)],
        [Report(4, 1, 0.8), Report(5, 1, 0.3), Report(6, 1, None)],
    ]
    teams = {number: alone(number) for number in range(8)}
    found = [standing(batches, 1, teams[n], teams, 0.5) for n in range(8)]
    assert found == [(2, 3, 1), (1, 3, 1), (3, 3, 1), (1, 4, 2), (1, 6, 3), (6, 6, 3), (7, 6, 3), None]
    assert [each.goes_on for each in found if each] == [False, True, False, True, True, False, False]
    assert standing(batches, 2, teams[1], teams, 0.5) == (1, 1, 1)  # the first at a rung goes on


def test_seeds_are_compared_by_their_mean_once_all_are_there() -> None:
    teams = {0: Team("", "a", 2), 1: Team("", "a", 2), 2: Team("", "b", 2), 3: Team("", "b", 2), 4: Team("x", "c", 1)}
    batches = [[Report(0, 1, 0.9), Report(2, 1, 0.5), Report(4, 1, 1.0)]]
    assert standing(batches, 1, teams[0], teams, 0.5) is None
    batches += [[Report(1, 1, 0.1)], [Report(3, 1, 0.6)]]
    assert standing(batches, 1, teams[1], teams, 0.5) == (1, 1, 1)  # the first that was complete
    assert standing(batches, 1, teams[2], teams, 0.5) == (1, 2, 1)  # 0.55, over 0.5
    assert standing([*batches[:2], [Report(3, 1, None)]], 1, teams[2], teams, 0.5) == (2, 1, 1)  # one has diverged


def test_expected_epochs() -> None:
    halving = Halving(rungs=(1, 3, 9), keep=1 / 3)
    assert halving.expected_epochs(0, 9) == pytest.approx(1 + 2 / 3 + 6 / 9)
    assert halving.expected_epochs(2, 9) == pytest.approx(1 + 6 / 3)
    assert halving.expected_epochs(9, 9) == 0 and halving.expected_epochs(9, 12) == 3
    assert [halving.rung(epoch, 9) for epoch in (0, 1, 2, 3, 8, 9)] == [None, 1, 1, 3, 3, 3]


def open_members(path: Path, dataset: datasets.Dataset, config: Config, hparams: list[Hyperparams]) -> list[Any]:
    found = []
    for index, each in enumerate(hparams):
        run = dataclasses.replace(config, hparams=each)
        info = datasets.dataset_info(dataset, run.train_split, run.eval_split, path)
        found.append(members.open_member(path / f"{index}", run_info.RunInfo(run, info, {}), pytest.fail))
    return found


def test_a_refilled_lane_compiles_nothing_and_its_member_equals_its_lone_run(
    tmp_path: Path, dataset: datasets.Dataset
) -> None:
    """Five members in two lanes, never at the same step: the bits of a population that starts and ends together.

    (`test_members` compares that with runs of one member, which equal it up to rounding.)
    """
    config = dataclasses.replace(TINY, epochs=3, train_split="train[:100]", eval_split="test[:50]")
    hparams = [Hyperparams(seed=n, learning_rate=10**-n, dropout_rate=0.1 * n) for n in range(1, 6)]
    splits = dataset.read("train[:100]"), dataset.read("test[:50]")
    lone = open_members(tmp_path, dataset, config, hparams)
    *_, last = members.train(lone, *splits, needs_state=lambda: False)
    finals = [jax.tree.map(lambda leaf, i=i: jax.device_get(leaf)[i], last.state) for i in range(5)]
    waiting = open_members(tmp_path, dataset, config, hparams)
    everyone, lanes, compiled_before, running = [*waiting], Lanes(2, waiting[0], *splits), [], []
    while waiting or running:
        # One lane takes its first member an epoch later: they are never at the same step.
        while waiting and len(running) < (2 if compiled_before else 1):
            running.append(waiting.pop(0))
        lanes.seat(running)
        assert lanes.running() == sorted(running, key=lanes.members.index)
        for event in lanes.train_epoch():
            assert event.metrics.examples.shape[0] == 2
        running = [member for member in running if member.start < member.program.total_steps]
        jitted: tuple[Any, ...] = compiled.train_members, compiled.eval_members, compiled.init_run
        compiled_before.append(tuple(each._cache_size() for each in jitted))
    assert len(compiled_before) == 9 and len({*compiled_before}) == 1
    for member, one, state in zip(everyone, lone, finals, strict=True):
        assert untimed(member) == untimed(one) and len(member.history["history"]) == 6
        assert_trees_equal(member.state, state)


class Killed(Exception):
    """Ends a worker wherever it is."""


class Bench:
    """An experiment in a directory, and workers for it in this process."""

    def __init__(self, path: Path, dataset: datasets.Dataset, **changes: Any) -> None:
        halving = Halving(rungs=(1, 2), keep=1 / 3)
        experiment = Experiment(path / "s.py", "Which?", BASE, GRID, None, 9, {}, 0, lambda o: "", adapt=halving)
        self.experiment, self.path, self.dataset = dataclasses.replace(experiment, **changes), path, dataset
        path.mkdir(exist_ok=True)
        self.queue = TrialQueue(open_journal(path), "selection")
        self.log = ReportLog(self.queue)
        self.ticks = list[tuple[int, int]]()  # members in use, lanes

    @property
    def stage(self) -> Stage:
        return Sweep(self.experiment, self.path, self.queue, self.queue).selection()

    def work(self, size: int = 3, kill: Any = None, signum: Any = lambda tick: None) -> None:
        """Train until the stage is done; `kill` is called with each place in the worker that is reached."""
        signals: Any = SimpleNamespace(received=None)

        def update(stage: Stage, running: list, lanes: int) -> None:
            self.ticks.append((len(running), lanes))
            signals.received = signum(len(self.ticks))
            if kill:
                kill("trained")

        progress: Any = SimpleNamespace(
            begin=lambda stage: None, say=lambda text: None, wait=lambda left: None, update_lanes=update
        )
        adapt: Any = self.experiment.adapt
        decisions = Decisions(self.stage, adapt, self.log)
        worker = HalvingWorker(self.stage, self.dataset, self.path, lambda _: 99, progress, signals, decisions)
        if kill:
            append, finish = self.log.append, self.queue.finish
            self.log.append = lambda batch: (append(batch), kill("stored"))[0]  # type: ignore[method-assign]
            self.queue.finish = lambda *args: (finish(*args), kill("recorded"))[0]  # type: ignore[method-assign]
        try:
            worker.work(size, lambda: None)
        finally:
            self.log.__dict__.pop("append", None)
            self.queue.__dict__.pop("finish", None)

    def results(self) -> dict[str, Any]:
        """By member: whether and why it stopped, its value and its history."""
        found = {}
        for key, trial in self.queue.finished().items():
            history = self.queue.attribute(trial, "history")
            lines = [{name: value for name, value in line.items() if name != "seconds"} for line in history]
            found[key] = trial.user_attrs.get("stopped"), self.queue.objective(trial), lines
        return found


def test_every_member_is_stopped_or_done_as_the_order_says(tmp_path: Path, dataset: datasets.Dataset) -> None:
    bench = Bench(tmp_path / "sweep", dataset)
    bench.work()
    found = bench.results()
    assert len(found) == 9 and bench.stage.left() == 0
    batches, teams = bench.log.batches(), {n: alone(n) for n in range(9)}
    for number, (stopped, value, lines) in enumerate(found.values()):
        ranks = {rung: standing(batches, rung, teams[number], teams, 1 / 3) for rung in (1, 2)}
        first = next((rung for rung in (1, 2) if (r := ranks[rung]) and not r.goes_on), None)
        assert (stopped and stopped["epoch"]) == first and len(lines) == 2 * (first or 4)
        assert (value is None) == bool(stopped)
        trial = bench.stage.finished()[number]
        state = optuna.trial.TrialState.PRUNED if stopped else optuna.trial.TrialState.COMPLETE
        assert trial.state == state and trial.user_attrs["diverged_at"] is None
        assert {**trial.intermediate_values} == {line["epoch"]: line["accuracy"] for line in lines[1::2]}
    reasons = Counter(stopped and stopped["epoch"] for stopped, *_ in found.values())
    assert reasons[1] >= 4 and reasons[2] >= 1 and reasons[None] >= 1
    kept = {path.name for path in (bench.path / "members").iterdir()}
    done = bench.stage.kept()
    assert {f"{trial.number:04d}" for trial in done} == kept and all(trial.state.name == "COMPLETE" for trial in done)
    assert checkpoint.steps(bench.path / "members" / f"{done[0].number:04d}" / "checkpoints") == [8]


@pytest.mark.parametrize("save_seconds", [1e9, -1.0])
def test_a_killed_worker_decides_as_it_would_have(
    save_seconds: float, tmp_path: Path, dataset: datasets.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at many places, with members restored from their last epoch or trained again: the same to the bit."""
    monkeypatch.setattr(members, "SAVE_SECONDS", save_seconds)
    straight = Bench(tmp_path / "straight", dataset)
    places = list[str]()
    straight.work(kill=places.append)
    assert {"trained", "stored", "recorded"} == {*places}
    for index in range(0, len(places) - 1, 2 if save_seconds > 0 else 3):  # of the last few too
        bench, left = Bench(tmp_path / f"{index}", dataset), [index]

        def kill(place: str, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Killed

        with pytest.raises(Killed):
            bench.work(kill=kill)
        assert bench.stage.left()
        bench.work()
        assert bench.results() == straight.results(), places[index]


RATES = (1e-2, 1e-5, 3e-3, 1e-3, 5e-3, 3e-4, 2e-2)
TEAMS = Halving(rungs=(1, 2), keep=0.5, across="seed")
PROGRAMS = tuple(
    {"widths": [8 - 4 * (n > 4)], "learning_rate": rate} for n, rate in enumerate((*RATES[:5], *RATES[:3]))
)
INTERRUPTED: dict[str, tuple[dict[str, Any], int]] = {  # what is unlike `Bench`, and the lanes
    "seeds": ({"grid": tuple({"learning_rate": r, "seed": n} for n in range(2) for r in RATES), "adapt": TEAMS}, 4),
    "two programs": ({"grid": PROGRAMS, "adapt": Halving(rungs=(1,), keep=0.5)}, 3),
    "a late rung": ({"adapt": Halving(rungs=(2,), keep=0.5)}, 4),
}


@pytest.mark.parametrize(("case", "tick"), [("seeds", 2), ("seeds", 4), ("two programs", 4), ("a late rung", 3)])
def test_interrupted_in_any_way_it_decides_as_it_would_have(
    case: str, tick: int, tmp_path: Path, dataset: datasets.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a signal, by a kill before anything was saved or after everything was, and by a kill while it saves."""
    changes, size = INTERRUPTED[case]
    (straight := Bench(tmp_path / "straight", dataset, **changes)).work(size)
    save_member = members.save_member
    for way in ("signal", "kill", "kill after a save", "kill while saving"):
        bench, left = Bench(tmp_path / way, dataset, **changes), [2 if way == "kill while saving" else 99]
        monkeypatch.setattr(members, "SAVE_SECONDS", -1.0 if way == "kill after a save" else 1e9)

        def save(*args: Any, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            save_member(*args)

        def kill(place: str, bench: Bench = bench) -> None:
            if place == "trained" and len(bench.ticks) == tick:
                raise Killed

        with monkeypatch.context() as patch, pytest.raises((Killed, Stopped)):
            patch.setattr(members, "save_member", save)
            if way in ("kill", "kill after a save"):
                bench.work(size, kill=kill)
            bench.work(size, signum=lambda ticks: signal.SIGTERM if ticks == tick else None)
        bench.work(size)
        assert bench.results() == straight.results(), way


def no_waiting(monkeypatch: pytest.MonkeyPatch, then: Any = lambda: None) -> None:
    """Fail where a worker waits for others more than once; `then` is called the first time."""
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        assert len(waited) < 3, "it would wait for ever"
        then()

    monkeypatch.setattr(halving, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))


def test_seeds_that_join_a_stopped_configuration_stop_too(
    tmp_path: Path, dataset: datasets.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_waiting(monkeypatch)
    few, more = (
        tuple({"learning_rate": rate, "seed": seed} for rate in (1e-2, 1e-5) for seed in range(number))
        for number in (2, 3)
    )
    Bench(tmp_path / "sweep", dataset, grid=few, adapt=TEAMS).work(4)
    bench = Bench(tmp_path / "sweep", dataset, grid=more, adapt=TEAMS)
    bench.work(4)
    stopped = {tuple(json.loads(key).values()): bool(found[0]) for key, found in bench.results().items()}
    assert len(stopped) == 6 and bench.stage.left() == 0
    assert {stopped[1e-5, seed] for seed in range(3)} == {True}
    fewer = Bench(tmp_path / "sweep", dataset, grid=more[:1], adapt=TEAMS)
    fewer.work(4)
    assert fewer.stage.left() == 0


def test_what_another_worker_leaves_is_taken_though_members_of_two_programs_wait_for_it(
    tmp_path: Path, dataset: datasets.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = tuple({"widths": [width], "learning_rate": 1e-2, "seed": seed} for width in (8, 4) for seed in range(2))
    bench = Bench(tmp_path / "sweep", dataset, grid=grid, adapt=TEAMS)
    with TrialQueue(open_journal(bench.path), "selection") as other:
        other.worker = other.worker.rpartition(" ")[0] + " 1"  # it lives
        other.enqueue(bench.stage.members)
        first, second, third, fourth = other.claim(4)
        other.release([first, third])
        no_waiting(monkeypatch, then=lambda: other.release([second, fourth]))
        bench.work(4)
    assert bench.stage.left() == 0


def test_a_signal_waits_for_the_end_of_the_epoch_and_saves(tmp_path: Path, dataset: datasets.Dataset) -> None:
    straight, bench = Bench(tmp_path / "straight", dataset), Bench(tmp_path / "sweep", dataset)
    straight.work()
    with pytest.raises(Stopped, match="the 3 running members are saved in .*the same command goes on from there"):
        bench.work(signum=lambda tick: signal.SIGTERM if tick == 3 else None)
    assert not bench.queue.running()
    epochs = [len(checkpoint.steps(path / "checkpoints")) for path in (bench.path / "members").iterdir()]
    assert epochs.count(1) == 3
    bench.work()
    assert bench.results() == straight.results() and bench.ticks == straight.ticks  # no epoch was trained twice


def test_lanes_are_in_use_and_the_last_few_members_get_fewer(tmp_path: Path, dataset: datasets.Dataset) -> None:
    bench = Bench(tmp_path / "sweep", dataset)
    bench.work(size=4)
    assert bench.ticks[0] == (4, 4) and bench.ticks[-1][1] == 2
    used, there = map(sum, zip(*bench.ticks, strict=True))
    trained = sum(len(lines) // 2 for _, _, lines in bench.results().values())
    assert used == trained and used / there > 0.8


def test_seeds_go_on_together(tmp_path: Path, dataset: datasets.Dataset) -> None:
    """Three seeds of four configurations in four lanes: a configuration waits for its last seed."""
    grid = tuple({"learning_rate": rate, "seed": seed} for rate in (1e-2, 1e-3, 1e-5, 3e-3) for seed in range(3))
    halving = Halving(rungs=(1,), keep=0.5, across="seed")
    bench = Bench(tmp_path / "sweep", dataset, grid=grid, adapt=halving)
    bench.work(size=4)
    stopped = [bool(stopped) for stopped, *_ in bench.results().values()]
    groups = [stopped[first : first + 3] for first in range(0, 12, 3)]
    assert all(len({*group}) == 1 for group in groups)
    assert [group[0] for group in groups][:3] == [False, True, True]


def test_a_member_that_diverges_stops_its_team_only(tmp_path: Path, dataset: datasets.Dataset) -> None:
    grid = tuple({"learning_rate": rate, "seed": seed} for rate in (1e-2, 1e30) for seed in range(2))
    for across in (None, "seed"):
        halving = Halving(rungs=(1,), keep=0.5, across=across)
        bench = Bench(tmp_path / f"{across}", dataset, grid=grid, adapt=halving)
        bench.work(size=4)
        trials = bench.stage.finished()
        assert [trial.user_attrs["diverged_at"] for trial in trials] == [None, None, 2, 2]
        assert [trial.state.name for trial in trials][2:] == ["PRUNED"] * 2
        stopped = ["stopped" in trial.user_attrs for trial in trials]
        assert stopped == ([False] * 4 if across else [*stopped[:2], False, False]) and stopped[:2].count(True) <= 1


def test_programs_take_turns(tmp_path: Path, dataset: datasets.Dataset) -> None:
    grid = tuple({"widths": [width], "seed": seed} for width in (8, 4) for seed in range(3))
    bench = Bench(tmp_path / "sweep", dataset, grid=grid)
    bench.work(size=4)
    assert len(bench.results()) == 6 and bench.stage.left() == 0


STUDY = """'''A tiny study.'''
from mnist_flax import Config, Halving

BASE = Config(
    widths=(16,), batch_norm_layers=(), l2_layers=(), batch_size=16, epochs=4, steps_per_call=13,
    train_split="train[:200]", eval_split="train[200:400]",
)
FINAL_SEEDS = 0
ADAPT = Halving(rungs=(1, 2), keep=1 / 3)
"""
SWEEP = (
    STUDY
    + """

def sweep():
    yield from ({"learning_rate": 10 ** (-4 + n / 6), "seed": n} for n in range(18))
"""
)
SEARCH = (
    STUDY
    + """TRIALS = 16


def search(trial):
    return {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True)}
"""
)


def decisions_follow_from_the_log(path: Path) -> list[optuna.trial.FrozenTrial]:
    """Check that every member was stopped, or went on, as the stored order says; returns the finished trials."""
    storage = open_journal(path)
    names = optuna.get_all_study_names(storage)
    queue = TrialQueue(storage, next(name for name in names if "selection" in name and "reports" not in name))
    log = ReportLog(queue)
    trials = [*queue.finished().values()]
    numbers = {trial.number: queue.first_number(trial) for trial in trials}
    batches, teams = log.batches(), {number: alone(number) for number in numbers.values()}
    for trial in trials:
        team = teams[numbers[trial.number]]
        ranks = [standing(batches, rung, team, teams, 1 / 3) for rung in (1, 2)]
        first = next((rung for rung, rank in zip((1, 2), ranks, strict=True) if rank and not rank.goes_on), None)
        assert trial.user_attrs.get("stopped", {}).get("epoch") == first
        assert max(trial.intermediate_values) == (first or 4)
    return trials


def test_two_workers_one_killed(tmp_path: Path, command: Command) -> None:
    study = tmp_path / "study.py"
    study.write_text(SWEEP)
    flags = ("--worker", "--workers", "2", "--population", "3")
    first, second = (start(study, tmp_path / "sweep", *flags) for _ in "12")
    while f" {first.pid}" not in "".join(p.read_text() for p in (tmp_path / "sweep").glob("members/*/.lock")):
        assert first.poll() is None, first.communicate()
        time.sleep(0.02)
    time.sleep(0.3)
    first.kill()
    first.communicate()
    _, errors = second.communicate(timeout=PATIENCE)
    assert (second.returncode, errors) == (0, "")
    trials = decisions_follow_from_the_log(tmp_path / "sweep")
    assert len(trials) == 18 and len({trial.user_attrs["member"] for trial in trials}) == 18
    again = command("sweep", study, "--workdir", tmp_path / "sweep", "--no-tensorboard")
    assert again.returncode == 0 and "is finished: nothing to do" in again.stdout, again.stderr
    rows = rows_of(tmp_path / "sweep")
    assert sum("stopped" in row for row in rows) == sum(row["value"] is None for row in rows) >= 6
    assert "| stopped |" in (tmp_path / "sweep" / "summary.md").read_text()


def test_a_search_is_told_of_the_rungs(tmp_path: Path, command: Command) -> None:
    study = tmp_path / "study.py"
    study.write_text(SEARCH)
    result = command("sweep", study, "--workdir", tmp_path / "sweep", "--population", "4", "--no-tensorboard")
    assert result.returncode == 0, result.stderr
    assert "lanes in use" in result.stdout and "stopped after epoch 1: not among the best" in result.stdout
    trials = decisions_follow_from_the_log(tmp_path / "sweep")
    assert len(trials) == 16 and all("learning_rate" in trial.params for trial in trials)
    assert {trial.state.name for trial in trials} == {"PRUNED", "COMPLETE"}


@pytest.mark.parametrize(
    ("adapt", "said"),
    [
        ("Halving(rungs=(3, 1))", r"rungs=\(3, 1\) is out of range; give rising whole numbers"),
        ("Halving(rungs=())", r"rungs=\(\) is out of range"),
        ("Halving(rungs=(1, 2.5))", r"rungs=\(1, 2.5\) is out of range"),
        ("Halving(rungs=3)", "rungs=3 is out of range"),
        ("Halving(rungs=(1, 5))", r"rungs=\(1, 5\) does not fit BASE.epochs=4; give rungs up to that number"),
        ("Halving(rungs=(4,))", r"rungs=\(4,\) does not fit BASE.epochs=4"),
        ("Halving(rungs=(1,), keep=1.0)", "keep=1.0 is out of range; give a number between 0 and 1"),
        ("Halving(rungs=(1,), keep='x')", "keep='x' is out of range"),
        ("Halving(rungs=(1,), across='l2')", "across='l2' is out of range; give \"seed\" or None"),
        ("Halving", "ADAPT=<class .*> must be a Halving"),
        ("'halving'", "ADAPT='halving' must be a Halving"),
    ],
)  # fmt: skip
def test_a_wrong_method_is_one_line(adapt: str, said: str, tmp_path: Path) -> None:
    study = tmp_path / "study.py"
    study.write_text(SWEEP.replace("Halving(rungs=(1, 2), keep=1 / 3)", adapt))
    with pytest.raises(InputError, match=said) as error:
        experiment_file.load(study)
    assert "\n" not in str(error.value) and str(error.value).startswith(str(study))


def test_what_does_not_fit_the_members_is_one_line(tmp_path: Path, command: Command) -> None:
    study = tmp_path / "study.py"
    study.write_text(SEARCH.replace("keep=1 / 3", "across='seed'"))
    result = command("sweep", study, "--workdir", tmp_path / "sweep")
    assert result.returncode == 2 and "across='seed' needs members that sweep() lists" in result.stderr
    study.write_text(SWEEP.replace('"seed": n', '"epochs": 3'))
    with pytest.raises(InputError, match="epochs=3 cannot differ between members with ADAPT; set it in BASE"):
        experiment_file.load(study)
    assert {*tmp_path.iterdir()} == {study}


def test_the_method_is_part_of_the_sweep(tmp_path: Path) -> None:
    from mnist_flax.sweep import directory

    def identity(text: str) -> dict:
        (tmp_path / "study.py").write_text(text)
        return directory.identity(experiment_file.load(tmp_path / "study.py"), None)

    line = "ADAPT = Halving(rungs=(1, 2), keep=1 / 3)\n"
    before, now = identity(SWEEP.replace(line, "")), identity(SWEEP)
    assert "adapt" not in before and json.loads(json.dumps(now["adapt"])) == now["adapt"]
    directory.create(tmp_path / "plain", before)
    directory.create(tmp_path / "halving", now)
    assert directory.check(tmp_path / "halving", now) == [] == directory.check(tmp_path / "plain", before)
    with pytest.raises(InputError, match=r"ADAPT.method='Halving' \(there unset\), ADAPT.rungs=\[1, 2\]"):
        directory.check(tmp_path / "plain", now)
    with pytest.raises(InputError, match=r"ADAPT.method=unset \(there 'Halving'\)"):
        directory.check(tmp_path / "halving", before)
    with pytest.raises(InputError, match=r"ADAPT.keep=0.5 \(there 0.333"):
        directory.check(tmp_path / "halving", identity(SWEEP.replace("1 / 3", "0.5")))
    with pytest.raises(InputError, match=r"BASE.epochs=8 \(there 4\); with ADAPT the decisions depend on the number"):
        directory.check(tmp_path / "halving", identity(SWEEP.replace("epochs=4", "epochs=8")))

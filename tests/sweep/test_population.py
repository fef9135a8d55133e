"""Population-based training: decisions follow from scores alone, and every lineage can be trained again alone."""

import dataclasses
import json
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from conftest import PATIENCE, TINY, Command
from test_drivers import wide
from test_halving import BASE, Killed, open_members
from test_sweep import lines_of, rows_of, start

from mnist_flax import drivers, loop, placement
from mnist_flax.config import Config, Hyperparams
from mnist_flax.data import datasets
from mnist_flax.errors import InputError
from mnist_flax.process.signals import Stopped
from mnist_flax.sweep import directory, experiment_file, lanes, members
from mnist_flax.sweep.adapt import Choice, PopulationBased
from mnist_flax.sweep.experiment import Experiment
from mnist_flax.sweep.lineage import Population
from mnist_flax.sweep.population import PopulationWorker
from mnist_flax.sweep.stages import Stage, Sweep
from mnist_flax.sweep.storage import open_journal
from mnist_flax.sweep.trial_queue import TrialQueue
from mnist_flax.workdir import checkpoint, run_info
from mnist_flax.workdir.run_info import RunInfo

METHOD = PopulationBased(quantile=0.25, perturb={"learning_rate": (0.5, 2.0)}, resample={"dropout_rate": (0.0, 0.3)})


def test_the_worst_copy_the_best_and_who_diverged_too() -> None:
    scores = [0.5, 0.9, 0.1, None, 0.8, 0.6, 0.2, 0.7]
    found = METHOD.choices(3, 1, scores)
    assert found == METHOD.choices(3, 1, [*scores]) and found != METHOD.choices(3, 2, scores)
    copies = {i: choice.source for i, choice in enumerate(found) if choice.source != i}
    assert copies.keys() == {2, 3} and {*copies.values()} <= {1, 4}
    for i in copies:
        assert found[i].factors["learning_rate"] in (0.5, 2.0) and found[i].values["dropout_rate"] in (0.0, 0.3)
    assert all(found[i] == Choice(i) for i in range(8) if i not in copies)
    drawn = [METHOD.choices(seed, 1, scores)[2] for seed in range(99)]
    assert {choice.source for choice in drawn} == {1, 4} and len({*map(str, drawn)}) == 8  # each option is drawn
    assert [choice.source for choice in METHOD.choices(0, 1, [None, None, 0.1])] == [2, 2, 2]
    assert [choice.source for choice in METHOD.choices(0, 1, [None, None])] == [0, 1]
    assert [choice.source for choice in METHOD.choices(0, 1, [0.5, 0.5])] == [0, 0]


def test_changed_hyperparameters_stay_in_their_range() -> None:
    copied = Hyperparams(dropout_rate=0.9, learning_rate=1e-3, seed=5)
    changed = Choice(0, {"dropout_rate": 2.0, "learning_rate": 2.0}, {"l2": 0.5}).hparams(copied, seed=7)
    assert changed == dataclasses.replace(copied, dropout_rate=1 - 2**-24, learning_rate=2e-3, l2=0.5, seed=7)


class Bench:
    """Six members, of which one diverges in the first epoch, and workers for them in this process."""

    def __init__(self, path: Path, dataset: datasets.Dataset, every: int = 1) -> None:
        method = dataclasses.replace(METHOD, every=every)
        grid = tuple({"learning_rate": rate, "seed": n} for n, rate in enumerate([1e-2, 1e30, 1e-4, 1e-3, 3e-3, 1e-5]))
        base = dataclasses.replace(BASE, epochs=5)
        experiment = Experiment(path / "s.py", "Which?", base, grid, None, 6, {}, 0, lambda o: "", adapt=method)
        self.experiment, self.path, self.dataset, self.method = experiment, path, dataset, method
        path.mkdir(exist_ok=True)
        self.queue, self.epochs = TrialQueue(open_journal(path), "selection"), 0

    @property
    def stage(self) -> Stage:
        return Sweep(self.experiment, self.path, self.queue, self.queue).selection()

    def work(self, kill: Any = None, signum: Any = lambda epoch: None) -> None:
        signals: Any = SimpleNamespace(received=None)

        def update(stage: Stage, running: list, lanes: int) -> None:
            self.epochs += 1
            signals.received = signum(self.epochs)
            if kill:
                kill("trained")

        progress: Any = SimpleNamespace(
            begin=lambda stage: None,
            say=lambda text: kill and kill("copied"),
            wait=lambda left: None,
            update_lanes=update,
        )
        worker = PopulationWorker(
            self.stage, self.dataset, self.path, lambda _: 99, progress, signals, method=self.method, seed=0
        )
        finish, save = self.queue.finish, members.save_member
        if kill:
            self.queue.finish = lambda *args: (finish(*args), kill("recorded"))[0]  # type: ignore[method-assign]
            members.save_member = lambda *args: (save(*args), kill("saved"))[0]
        try:
            worker.work(99, lambda: None)
        finally:
            self.queue.__dict__.pop("finish", None)
            members.save_member = save

    def results(self) -> list[Any]:
        """Of each member: its value, its lineage and its history."""
        found = []
        for trial in self.stage.finished():
            history = self.queue.attribute(trial, "history")
            lines = [{name: value for name, value in line.items() if name != "seconds"} for line in history]
            found.append((self.queue.objective(trial), self.queue.attribute(trial, "lineage"), lines))
        return found


def test_lineages_tell_where_the_weights_come_from(tmp_path: Path, dataset: datasets.Dataset) -> None:
    bench = Bench(tmp_path / "sweep", dataset)
    bench.work()
    results = bench.results()
    assert len(results) == 6 and bench.stage.left() == 0
    assert all(value is not None for value, _, _ in results)  # also of the member that diverged at first
    assert [line["epoch"] for line in results[1][2]] == [2, 2, 3, 3, 4, 4, 5, 5]
    for number, (value, lineage, lines) in enumerate(results):
        assert value == lines[-1]["accuracy"]
        assert lineage[0]["step"] == 0 and lineage[0]["copied_from"] is None
        assert lineage[-1]["member"] == f"{number:04d}"
        for before, after in zip(lineage, lineage[1:], strict=False):
            assert after["copied_from"] == before["member"]
            assert after["step"] == 2 * after["generation"] > before["step"]
            factor = after["hparams"]["learning_rate"] / before["hparams"]["learning_rate"]
            assert factor in (0.5, 2.0) and after["hparams"]["dropout_rate"] in (0.0, 0.3)
            assert after["hparams"]["seed"] == int(after["member"])
            source = results[int(before["member"])][2]
            [scored] = [e for e in source if (e["epoch"], e["split"]) == (after["generation"], "eval")]
            assert after["score"] == scored["accuracy"]
        rates = {line["epoch"]: line["learning_rate"] for line in lines}
        assert rates[5] == lineage[-1]["hparams"]["learning_rate"]
    assert max(len(lineage) for _, lineage, _ in results) >= 3
    for trial in bench.stage.kept():
        path = bench.stage.member_dir(trial)
        run, lineage = run_info.read(path), lines_of(path / "lineage.jsonl")
        assert lineage == bench.queue.attribute(trial, "lineage") and checkpoint.steps(path / "checkpoints") == [10]
        by_step = {line["step"]: Hyperparams(**line["hparams"]) for line in lineage}
        assert run.hparams_by_step == (by_step if len(by_step) > 1 else {})
        assert run.config_at(9).hparams == by_step[max(by_step)]
        assert run.config == bench.stage.config(trial.user_attrs["overrides"])


@pytest.mark.parametrize(("save_seconds", "every"), [(1e9, 1), (-1.0, 1), (-1.0, 2)])
def test_a_killed_worker_goes_on_as_it_would_have(
    save_seconds: float, every: int, tmp_path: Path, dataset: datasets.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between any two epochs, copies, saves and records: the same to the bit."""
    monkeypatch.setattr(members, "SAVE_SECONDS", save_seconds)
    straight, places = Bench(tmp_path / "straight", dataset, every), list[str]()
    straight.work(kill=places.append)
    assert {"trained", "copied", "recorded", "saved"} == {*places}
    for index in range(1, len(places) - 1, 2 if len(places) < 20 else 7):
        bench, left = Bench(tmp_path / f"{index}", dataset, every), [index]

        def kill(place: str, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Killed

        with pytest.raises(Killed):
            bench.work(kill=kill)
        trained = bench.epochs
        bench.work()
        assert bench.results() == straight.results(), (index, places[index])
        for trial in bench.stage.kept():
            assert checkpoint.steps(bench.stage.member_dir(trial) / "checkpoints")[-1:] == [10], (index, places[index])
        if save_seconds < 0 and places[index] == "copied":
            assert bench.epochs - trained == 5 - trained  # not from scratch


def test_lineages_are_the_same_where_a_member_that_was_copied_copied_later() -> None:
    """Also where runs are read again, which have the hyperparameters of those that they copied."""
    method = PopulationBased(quantile=0.34, perturb={"learning_rate": (0.5, 2.0)})
    accuracies = [(0.9, 0.1), (0.5, 0.6), (0.1, 0.5), (0.4, 0.9)]  # the first is the best, then the worst
    found = []
    for _ in range(2):
        running: list[Any] = []
        for number, scores in enumerate(accuracies):
            run = RunInfo(Config(hparams=Hyperparams(seed=number, learning_rate=10.0**-number)), {}, {})
            run = found[0].members[number].run if found else run
            lines = [{"split": "eval", "epoch": n + 1, "accuracy": score} for n, score in enumerate(scores)]
            program = SimpleNamespace(steps_per_epoch=2)
            member = {"path": Path(f"{number:04d}"), "run": run, "history": {"history": lines}, "program": program}
            running.append(SimpleNamespace(**member))
        population = Population(running, method, 0)
        population.begin()
        population.evolve(1)
        population.evolve(2)
        found.append(population)
    assert found[0].lineages == found[1].lineages
    assert "0000" in [line["copied_from"] for lineage in found[0].lineages for line in lineage]
    assert found[0].lineages[0][-1]["copied_from"] == "0003"


def test_an_epoch_after_a_copy_counts_its_own_steps_only(tmp_path: Path, dataset: datasets.Dataset) -> None:
    """The member that diverges does so within an epoch, after a call that was sound."""
    bench = Bench(tmp_path / "sweep", dataset)
    base = dataclasses.replace(bench.experiment.base, steps_per_call=1)
    bench.experiment = dataclasses.replace(bench.experiment, base=base)
    bench.work()
    lines = [line for _, _, history in bench.results() for line in history if line["split"] == "train"]
    assert {line["examples"] for line in lines} == {100}


def test_another_population_is_refused(tmp_path: Path) -> None:
    """Else networks of the first would be lost, and lineages of two be mixed."""
    grid = tuple({"learning_rate": rate} for rate in (1e-2, 1e-3))
    base = dataclasses.replace(BASE, epochs=5)
    (tmp_path / "s.py").write_text("")
    first, more = (
        directory.identity(Experiment(tmp_path / "s.py", "", base, members, None, 2, {}, 0, str, adapt=METHOD), None)
        for members in (grid, (*grid, {"learning_rate": 1e-4}))
    )
    directory.create(tmp_path / "sweep", first)
    directory.check(tmp_path / "sweep", first)
    with pytest.raises(InputError, match=r"MEMBERS='3 \(\w+\)' \(there '2 \(\w+\)'\); a population cannot change once"):
        directory.check(tmp_path / "sweep", more)


def test_copies_are_not_decided_on_the_test_split(tmp_path: Path) -> None:
    sizes = {"train": 60000, "test": 10000}
    final = {"train_split": "train", "eval_split": "test"}
    for split in ("test", "train[50000:]"):
        base = dataclasses.replace(BASE, eval_split=split)
        experiment = Experiment(tmp_path / "s.py", "", base, ({},), None, 1, final, 0, str, adapt=METHOD)
        if split == "test":
            with pytest.raises(InputError, match="split='test' of the selection shares examples with the test's"):
                experiment.check_no_leakage(sizes)
        else:
            experiment.check_no_leakage(sizes)


def test_a_signal_saves_all_members(tmp_path: Path, dataset: datasets.Dataset) -> None:
    straight, bench = Bench(tmp_path / "straight", dataset), Bench(tmp_path / "sweep", dataset)
    straight.work()
    with pytest.raises(Stopped, match="the 6 running members are saved in"):
        bench.work(signum=lambda epoch: signal.SIGTERM if epoch == 3 else None)
    bench.work()
    assert bench.results() == straight.results() and bench.epochs == 5
    damaged = Bench(tmp_path / "damaged", dataset)
    with pytest.raises(Stopped):
        damaged.work(signum=lambda epoch: signal.SIGTERM if epoch == 3 else None)
    shutil.rmtree(tmp_path / "damaged" / "members" / "0002" / "checkpoints")
    damaged.work()
    assert damaged.results() == straight.results() and damaged.epochs == 3 + 5


def test_a_lineage_alone_equals_its_member_in_float64(
    tmp_path: Path, dataset: datasets.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_arrays, init_run = drivers.as_arrays, drivers.init_run
    with jax.enable_x64(True):
        for module in (drivers, lanes):
            monkeypatch.setattr(module, "as_arrays", lambda h: jax.tree.map(np.asarray, wide(as_arrays(h))))
            monkeypatch.setattr(module, "init_run", lambda h, *, program: wide(init_run(h, program=program)))
        config = dataclasses.replace(TINY, epochs=6, train_split="train[:100]", eval_split="test[:50]")
        hparams = [Hyperparams(seed=n, learning_rate=10.0 ** (-1 - n), l2=0.01) for n in range(4)]
        splits = dataset.read("train[:100]"), dataset.read("test[:50]")
        running = open_members(tmp_path, dataset, config, hparams)
        population = Population(running, dataclasses.replace(METHOD, quantile=0.5), seed=1)
        population.begin()
        both = lanes.Lanes(4, running[0], *splits)
        both.seat(running)
        for epoch in range(1, 7):
            for _ in both.train_epoch():
                pass
            if epoch < 6:
                both.copy(population.evolve(epoch))
        assert sorted(map(len, population.lineages))[1:] >= [3, 3, 3]  # three with two copies or more
        for member in running:
            program, run = member.program, member.run
            driver = drivers.RunDriver(run.config_at(0), program, *splits, placement.data_mesh(16))
            plan = loop.make_plan(config, program.steps_per_epoch)
            losses = []
            for event in loop.run(driver, driver.init(), start=0, plan=plan, needs_state=lambda: False):
                losses.append(event.metrics.cross_entropy)
                if event.evaluation is not None:
                    driver.use(run.config_at(event.step))
                    final = jax.tree.map(np.array, event.state)
            assert {leaf.dtype for leaf in jax.tree.leaves(final.params)} == {np.dtype("float64")}
            pairs = zip(*map(jax.tree_util.tree_leaves_with_path, (final, member.state)), strict=True)
            for (path, mine), (_, theirs) in pairs:
                name = jax.tree_util.keystr(path)
                if "['dense_2']['bias']" not in name and "['mean']" not in name:  # in front of BatchNorm: of no effect
                    np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-10, err_msg=name)


STUDY = """'''A tiny population.'''
from mnist_flax import Config, PopulationBased

BASE = Config(
    widths=(16,), batch_norm_layers=(), l2_layers=(), batch_size=16, epochs=EPOCHS, steps_per_call=13,
    train_split="train[:200]", eval_split="train[200:400]",
)
ADAPT = PopulationBased(every=1, quantile=0.25, perturb={"learning_rate": (0.8, 1.25)})


def sweep():
    yield from ({"learning_rate": 10 ** (-4 + n / 2), "seed": n} for n in range(6))
"""
QUIET = ("--no-figures", "--no-tensorboard")


def test_a_member_is_an_ordinary_run_and_is_replayed(tmp_path: Path, command: Command) -> None:
    study, path = tmp_path / "study.py", tmp_path / "sweep"
    study.write_text(STUDY.replace("EPOCHS", "5"))
    result = command("sweep", study, "--workdir", path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "generation 4: " in result.stdout and " copies in its lineage" in result.stdout
    rows = rows_of(path)
    best = max((row for row in rows if (path / row["workdir"] if row["workdir"] else Path("/x")).exists()),
               key=lambda row: len(row["lineage"]))  # fmt: skip
    assert len(best["lineage"]) >= 2
    member, alone = path / best["workdir"], tmp_path / "alone"
    before = {str(file): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    replayed = command("sweep", study, "--workdir", path, "--replay", member.name, "--out", alone, *QUIET)
    assert replayed.returncode == 0, replayed.stderr
    assert {str(file): file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    ours, theirs = lines_of(alone / "metrics.jsonl"), best["history"]
    assert ours[-1]["learning_rate"] == theirs[-1]["learning_rate"] == best["lineage"][-1]["hparams"]["learning_rate"]
    assert abs(ours[-1]["cross_entropy"] - theirs[-1]["cross_entropy"]) < 1e-3 * theirs[-1]["cross_entropy"]
    assert abs(ours[-1]["accuracy"] - theirs[-1]["accuracy"]) <= 0.01
    again = command("sweep", study, "--workdir", path, "--replay", member.name, "--out", alone, *QUIET)
    assert again.returncode == 0 and "is finished: nothing to do" in again.stdout
    for workdir in (member, alone):
        shown = command("evaluate", "--workdir", workdir, "--json", "--no-figures")
        assert shown.returncode == 0 and abs(json.loads(shown.stdout)["accuracy"] - theirs[-1]["accuracy"]) <= 0.01
    assert command("export", "--workdir", member, "--format", "html", "--out", tmp_path / "x.html").returncode == 0
    flags = ["--config", member / "config.json", "--epochs", "6", *QUIET]
    longer = command("train", "--workdir", member, *flags)  # it goes on with its last hyperparameters
    assert longer.returncode == 0, longer.stderr
    assert lines_of(member / "metrics.jsonl")[-1]["learning_rate"] == theirs[-1]["learning_rate"]
    for wrong, said in (("9999", "is not a finished member of a population; give one of 0000"), ("x", "is not a")):
        refused = command("sweep", study, "--workdir", path, "--replay", wrong, "--out", tmp_path / "y", *QUIET)
        assert refused.returncode == 2 and said in refused.stderr and not (tmp_path / "y").exists()
    assert command("sweep", study, "--workdir", path, "--replay", "0").returncode == 2
    few = command("sweep", study, "--workdir", tmp_path / "few", "--population", "4")
    assert few.returncode == 2 and "population=4 is less than the 6 members" in few.stderr
    assert not (tmp_path / "few").exists()


def test_another_worker_waits_and_takes_over(tmp_path: Path, command: Command) -> None:
    study = tmp_path / "study.py"
    study.write_text(STUDY.replace("EPOCHS", "200"))
    first = start(study, tmp_path / "sweep", "--worker", "--workers", "2")
    while f" {first.pid}" not in "".join(p.read_text() for p in (tmp_path / "sweep").glob("members/*/.lock")):
        assert first.poll() is None, first.communicate()
        time.sleep(0.02)
    second = start(study, tmp_path / "sweep", "--worker", "--workers", "2")
    assert second.stdout
    while "waiting for 6 members" not in (line := second.stdout.readline()):
        assert line and "running" not in line, second.communicate()
    first.kill()
    first.communicate()
    out, errors = second.communicate(timeout=PATIENCE)
    assert (second.returncode, errors) == (0, "") and "epoch 1 of 200" in out
    again = command("sweep", study, "--workdir", tmp_path / "sweep", *QUIET)
    assert again.returncode == 0 and len(rows_of(tmp_path / "sweep")) == 6


@pytest.mark.parametrize(
    ("adapt", "said"),
    [
        ("PopulationBased(every=0, perturb={'l2': (2,)})", "every=0 is out of range; give a whole number from 1"),
        ("PopulationBased(every=4, perturb={'l2': (2,)})", "every=4 leaves BASE.epochs=4 without a second generation"),
        ("PopulationBased(quantile=0.6, perturb={'l2': (2,)})", "quantile=0.6 is out of range; give a number above 0"),
        ("PopulationBased()", "perturb={} changes nothing, and resample neither; name a hyperparameter"),
        ("PopulationBased(perturb=[1])", r"perturb=\[1\] is not a dict"),
        ("PopulationBased(perturb={'seed': (2,)})", "names 'seed'; give one of learning_rate, l2,"),
        ("PopulationBased(perturb={'l2': ()})", "has no numbers for l2"),
        ("PopulationBased(perturb={'l2': (-1,)})", "has a factor for l2 that is not above 0"),
        ("PopulationBased(resample={'dropout_rate': (1.0,)})", "resample has dropout_rate=1.0, which is out of range"),
        ("PopulationBased(perturb={'l2': (2,)}, resample={'l2': (2,)})", "names l2, as perturb does"),
        ("PopulationBased(perturb={'l2': (2,)})\nFINAL_SEEDS = 2", "FINAL_SEEDS=2 cannot test a PopulationBased"),
    ],
)
def test_a_wrong_method_is_one_line(adapt: str, said: str, tmp_path: Path) -> None:
    study, text = tmp_path / "study.py", STUDY.replace("EPOCHS", "4")
    line = next(line for line in text.splitlines() if line.startswith("ADAPT"))
    study.write_text(text.replace(line, f"ADAPT = {adapt}"))
    with pytest.raises(InputError, match=said) as error:
        experiment_file.load(study)
    assert "\n" not in str(error.value) and str(error.value).startswith(str(study))
    study.write_text(text.replace('"seed": n', '"widths": [n + 1]'))
    with pytest.raises(InputError, match=r"widths=\[1\] cannot differ between members of PopulationBased"):
        experiment_file.load(study)
    study.write_text(text.replace("range(6)", "range(1)"))
    with pytest.raises(InputError, match="PopulationBased needs two members or more"):
        experiment_file.load(study)


def test_hyperparameters_by_step_are_checked(tmp_path: Path) -> None:
    info = {"image_shape": [28, 28, 1], "class_names": ["0"], "train_examples": 1, "eval_examples": 1, "sha256": {}}
    run = run_info.new(TINY, info | {"data_dir": "/data"})
    run_info.write(tmp_path, run)
    assert "hparams_by_step" not in (text := (tmp_path / "config.json").read_text())
    by_step = {0: Hyperparams(seed=4), 13: Hyperparams(l2=0.5)}
    run_info.write(tmp_path, dataclasses.replace(run, hparams_by_step=by_step))
    read = run_info.read(tmp_path)
    assert read.hparams_by_step == by_step
    assert [read.config_at(step).hparams for step in (0, 12, 13, 99)] == [by_step[0]] * 2 + [by_step[13]] * 2
    good = json.loads((tmp_path / "config.json").read_text())["hparams_by_step"]
    for wrong, said in (
        ([0], "must map steps"), ({"13": good["13"]}, "the first of them 0"), (good | {"-1": {}}, "must map steps"),
        ({"0": {}}, "lacks field"), ({"0": good["0"] | {"l2": -1}}, "l2=-1.0 is out of range"),
    ):  # fmt: skip
        (tmp_path / "config.json").write_text(json.dumps(json.loads(text) | {"hparams_by_step": wrong}))
        with pytest.raises(InputError, match=said):
            run_info.read(tmp_path)

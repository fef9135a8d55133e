"""Every member of a population is what it would be alone, on one device or many."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
import pytest
from conftest import TINY, Tiny
from jax.sharding import Mesh

from mnist_flax import compiled, drivers, placement
from mnist_flax.config import Config, Hyperparams
from mnist_flax.data import batches, datasets
from mnist_flax.program import make_program
from mnist_flax.state import as_arrays
from mnist_flax.sweep import members
from mnist_flax.sweep.stages import Stage
from mnist_flax.sweep.storage import open_journal
from mnist_flax.sweep.trial_queue import TrialQueue
from mnist_flax.workdir import checkpoint, claim, run_info

MEMBERS = [{}, {"learning_rate": 1e-2, "seed": 1}, {"dropout_rate": 0.5}, {"l2": 0.1, "seed": 2}]


@pytest.fixture(scope="module")
def order() -> list[np.ndarray]:
    """Each member's own order of 200 examples: 13 batches, the last one short."""
    return [batches.epoch_batches(200, 16, seed=member.get("seed", 0), epoch=0) for member in MEMBERS]


@pytest.fixture(scope="module")
def lone(tiny: Tiny, small: batches.Split, order: list[np.ndarray]) -> list[tuple]:
    """Each member alone: its state and metrics after an epoch."""
    init, each = jax.jit(tiny.init), [tiny.hparams(**member) for member in MEMBERS]
    run = partial(compiled.train_steps, program=tiny.program)
    return [run(init(h), h, tuple(small), batches) for h, batches in zip(each, order, strict=True)]


@pytest.mark.parametrize(("devices", "at_once"), [(4, None), (2, 2)])
def test_every_member_equals_its_lone_run(
    devices: int, at_once: int | None, tiny: Tiny, small: batches.Split, order: list[np.ndarray], lone: list[tuple]
) -> None:
    mesh = Mesh(np.asarray(jax.devices()[:devices]), ("member",))
    own = partial(placement.shard_members, mesh=mesh)
    each = [tiny.hparams(**member) for member in MEMBERS]
    hparams = own(jax.tree.map(lambda *leaves: np.stack(leaves), *each))
    states = compiled.init_members(hparams, program=tiny.program, mesh=mesh)
    split = placement.replicate(tuple(small), mesh)
    states, metrics = compiled.train_members(
        states, hparams, split, own(np.stack(order)), program=tiny.program, mesh=mesh, at_once=at_once
    )
    scores = compiled.eval_members(
        states, hparams, split, placement.replicate(order[0], mesh), program=tiny.program, mesh=mesh, at_once=at_once
    )
    assert len(states.step.sharding.device_set) == devices
    for index, h in enumerate(each):
        state, alone = lone[index]
        # Of the same state: running statistics lag behind a bias that drifts by rounding (see `test_steps`).
        own_state = jax.tree.map(lambda leaf, index=index: np.asarray(leaf[index]), states)
        score = compiled.eval_steps(own_state, h, tuple(small), order[0], program=tiny.program)[0]
        np.testing.assert_allclose(metrics.cross_entropy[index], alone.cross_entropy, rtol=1e-4)
        np.testing.assert_allclose(metrics.l2_penalty[index], alone.l2_penalty, rtol=1e-4)
        np.testing.assert_array_equal(metrics.examples[index], alone.examples)
        np.testing.assert_allclose(scores.cross_entropy[index], score.cross_entropy, rtol=1e-5)
        for layer in ("dense_1", "dense_2", "dense_3"):
            kernels = states.params[layer]["kernel"][index], state.params[layer]["kernel"]
            np.testing.assert_allclose(*kernels, atol=1e-4)


def members_in(path: Path, dataset: datasets.Dataset, hparams: list[Hyperparams]) -> list[members.Member]:
    opened = []
    for index, h in enumerate(hparams):
        config = Config(
            hparams=h, widths=(16, 16), batch_size=20, epochs=2, steps_per_call=5,
            train_split="train[:200]", eval_split="test[:203]",
        )  # fmt: skip
        info = datasets.dataset_info(dataset, config.train_split, config.eval_split, path)
        (path / f"{index}").mkdir(parents=True, exist_ok=True)
        opened.append(members.open_member(path / f"{index}", run_info.RunInfo(config, info, {}), pytest.fail))
    return opened


def untimed(member: members.Member) -> list[dict]:
    """The history without its timings."""
    return [{name: value for name, value in line.items() if name != "seconds"} for line in member.history["history"]]


def test_a_member_that_diverges_stops_no_other(tmp_path: Path, dataset: datasets.Dataset) -> None:
    splits = dataset.read("train[:200]"), dataset.read("test[:203]")
    diverging = Hyperparams(learning_rate=1e30)
    histories = []
    for second in (diverging, Hyperparams(seed=5)):
        runs = members_in(tmp_path / f"{second.seed}", dataset, [Hyperparams(), second, Hyperparams(seed=2)])
        events = list(members.train(runs, *splits, needs_state=lambda: False))
        assert events[-1].step == runs[0].program.total_steps == 20
        histories.append([untimed(runs[0]), untimed(runs[2])])
        if second is diverging:
            members.save(runs, runs, events[-1])
            assert runs[1].diverged_at == 2  # the first step's loss is still the initial weights'
            assert [claim.was_saved(member.path) for member in runs] == [True, False, True]
    assert histories[0] == histories[1]
    assert len(histories[0][0]) == 4  # two lines an epoch


def test_a_leaf_that_is_not_finite_is_a_divergence_as_alone(tmp_path: Path, dataset: datasets.Dataset) -> None:
    """An infinite second moment: that weight stays as it is, and no metric tells."""
    splits = dataset.read("train[:200]"), dataset.read("test[:203]")
    runs = members_in(tmp_path / "first", dataset, [Hyperparams(), Hyperparams(seed=1)])
    event = next(event for event in members.train(runs, *splits, needs_state=lambda: True) if event.step == 5)
    members.save(runs, runs, event)
    runs = members_in(tmp_path / "first", dataset, [Hyperparams(), Hyperparams(seed=1)])
    adam = runs[1].state.opt_state[1]
    second = jax.tree.map(np.array, adam.nu)
    second["dense_1"]["bias"][3] = np.inf
    opt_state = (runs[1].state.opt_state[0], adam._replace(nu=second), *runs[1].state.opt_state[2:])
    runs[1].state = runs[1].state.replace(opt_state=opt_state)
    *_, last = members.train(runs, *splits, needs_state=lambda: False)
    assert (runs[0].diverged_at, runs[1].diverged_at) == (None, 10)  # at the first end of an epoch
    members.save(runs, runs, last)
    assert [checkpoint.steps(member.path / "checkpoints") for member in runs] == [[5, 20], [5]]


def test_members_go_on_from_their_checkpoints(tmp_path: Path, dataset: datasets.Dataset) -> None:
    splits = dataset.read("train[:200]"), dataset.read("test[:203]")
    all_three = [Hyperparams(), Hyperparams(seed=1, dropout_rate=0.4), Hyperparams(seed=2)]
    runs = members_in(tmp_path, dataset, all_three)
    spent = 0.0
    for event in members.train(runs, *splits, needs_state=lambda: True):
        spent += event.seconds + event.evaluation_seconds
        if event.step == 5:  # in the middle of the first epoch
            members.save(runs, runs, event)
    recorded = [line["seconds"] for member in runs for line in member.history["history"]]
    assert len(recorded) == 12 and sum(recorded) == pytest.approx(spent, abs=0.01)  # each has its share of the time
    straight = [untimed(member) for member in runs]
    again = members_in(tmp_path, dataset, all_three)
    assert [member.start for member in again] == [5, 5, 5]
    *_, last = members.train(again, *splits, needs_state=lambda: False)
    assert last.step == 20
    assert [untimed(member) for member in again] == straight


def test_size_follows_memory(dataset: datasets.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    fits = []
    for gigabytes in (2, 3, 4):
        monkeypatch.setattr(placement, "memory", lambda gigabytes=gigabytes: gigabytes * 10**9)
        fits.append(members.largest(TINY, dataset))
    assert fits[1] - fits[0] == pytest.approx(fits[2] - fits[1], abs=1)
    state = jax.tree.leaves(jax.eval_shape(Tiny(TINY).init, as_arrays(Hyperparams())))
    a_member = 10**9 / 2 / (fits[1] - fits[0])
    assert 3 < a_member / sum(leaf.size * leaf.dtype.itemsize for leaf in state) < 15
    data_size = 70_000 * 784 * 8  # on each of the eight devices
    assert fits[0] == pytest.approx((10**9 - data_size) / a_member, rel=0.01)
    monkeypatch.setattr(placement, "memory", lambda: 1)
    assert members.largest(TINY, dataset) == 1
    sizes = [members.memory_of(replace(TINY, batch_size=size), dataset)[0] for size in (16, 17)]
    assert sizes[1] - sizes[0] == (784 + 16 + 16) * 4 * 4  # of an example: each pixel and unit, four times in float32


def test_what_is_removed_has_no_name_from_the_database(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "sweep" / "members" / "0000").mkdir(parents=True)
    storage = open_journal(tmp_path / "sweep")
    with TrialQueue(storage, "study") as queue:
        queue.enqueue({"a": {"overrides": {}}})
        queue.finish(queue.claim(1)[0], [0.5], 0.5, {"workdir": "../outside"})
        attributes: Any = {"a": {}}
        stage = Stage("selection", cast(Any, None), queue, tmp_path / "sweep/members", attributes, cast(Any, None), 0)
        stage.prune()
    assert (tmp_path / "outside").exists() and not [*(tmp_path / "sweep" / "members").iterdir()]


def test_a_population_that_does_not_divide_is_filled_up(dataset: datasets.Dataset) -> None:
    """Nine members on eight devices; the seven copies are not seen, and the ninth is what it would be alone."""
    configs = [replace(TINY, hparams=Hyperparams(seed=seed)) for seed in range(9)]
    splits = dataset.read("train[:32]"), dataset.read("test[:20]")
    info = {"image_shape": dataset.image_shape, "class_names": dataset.class_names, "train_examples": 32}
    program = make_program(TINY, info)
    driver = drivers.PopulationDriver(configs, program, *splits)
    state, metrics = driver.train(driver.init(), driver.batches(0))
    assert metrics.examples.shape == (16, 2)
    alone = drivers.RunDriver(configs[8], program, *splits, placement.data_mesh(16))
    _, want = alone.train(alone.init(), alone.batches(0))
    np.testing.assert_allclose(metrics.cross_entropy[8], want.cross_entropy, rtol=1e-5)
    placed = driver.place([jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), state) for i in range(9)])
    assert {leaf.shape[0] for leaf in jax.tree.leaves(placed)} == {16}


def test_members_are_saved_in_between(
    tmp_path: Path, dataset: datasets.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = dataset.read("train[:200]"), dataset.read("test[:203]")
    monkeypatch.setattr(members, "SAVE_SECONDS", -1.0)
    runs = members_in(tmp_path, dataset, [Hyperparams(), Hyperparams(learning_rate=1e30)])
    for event in members.train(runs, *splits, needs_state=lambda: False):
        if event.step == 15:  # in the second epoch, the last
            saved = [checkpoint.steps(member.path / "checkpoints") for member in runs]
    assert saved == [[10], []]


def test_a_member_whose_checkpoints_are_all_damaged_starts_again(tmp_path: Path, dataset: datasets.Dataset) -> None:
    splits = dataset.read("train[:200]"), dataset.read("test[:203]")
    runs = members_in(tmp_path, dataset, [Hyperparams()])
    events = list(members.train(runs, *splits, needs_state=lambda: False))
    members.save(runs, runs, events[-1])
    (runs[0].path / "checkpoints" / "20" / "SHA256SUMS").unlink()
    said: list[str] = []
    again = members.open_member(runs[0].path, runs[0].run, said.append)
    assert (again.start, again.state, again.history["history"]) == (0, None, [])
    assert "is damaged" in said[0] and said[1].endswith("this member starts again from scratch") and len(said) == 2
    assert [path.name for path in (runs[0].path / "checkpoints").iterdir()] == ["corrupt-20"]

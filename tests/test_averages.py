"""What an evaluation sees with `average_weights` and `precise_batch_norm`: both against numpy in float64."""

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import Tiny, assert_trees_equal
from test_drivers import wide

import mnist_flax
from mnist_flax import compiled
from mnist_flax.config import Config, Hyperparams
from mnist_flax.data import batches
from mnist_flax.optimizer import weight_average
from mnist_flax.state import inference_variables
from mnist_flax.sweep import members
from mnist_flax.workdir import checkpoint, claim, run_info
from mnist_flax.workdir.resume import load

ON: dict[str, Any] = {"noise_at": "both", "virtual_adversarial": True, "average_weights": True, "distort": "both",
                      "precise_batch_norm": True}  # fmt: skip
CONFIG = Config(
    **ON, widths=(16, 16), batch_norm_layers=(1, 2), batch_size=16, epochs=2, steps_per_call=4, checkpoint_every=5,
    keep=9, train_split="train[:200]", eval_split="test[:203]", hparams=Hyperparams(noise=0.3, average_decay=0.9),
)  # fmt: skip


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.999])
def test_the_average_weighs_what_the_formula_says(decay: float) -> None:
    with jax.enable_x64(True):
        rng, tx = np.random.default_rng(0), weight_average(decay)
        params = {"kernel": jnp.asarray(rng.normal(size=(3, 2)))}
        state, seen = tx.init(params), []
        for _ in range(50):
            updates = {"kernel": jnp.asarray(rng.normal(size=(3, 2)))}
            passed, state = tx.update(updates, state, params)
            assert_trees_equal(passed, updates)
            params = optax.apply_updates(params, updates)
            seen.append(np.asarray(params["kernel"]))  # type: ignore
        weights = decay ** np.arange(49.0, -1, -1)
        want = np.tensordot(weights / weights.sum(), np.stack(seen), 1)
        np.testing.assert_allclose(state.average["kernel"], want, rtol=1e-10)  # type: ignore


def test_inference_has_the_average_and_training_does_not(small: batches.Split) -> None:
    states = []
    for on in (False, True):
        tiny = Tiny(Config(widths=(16, 16), batch_size=16, average_weights=on))
        h = tiny.hparams(average_decay=0.5)
        order = np.arange(64, dtype=np.int32).reshape(4, 16)
        states.append(compiled.train_steps(jax.jit(tiny.init)(h), h, tuple(small), order, program=tiny.program)[0])
    assert_trees_equal(states[0].params, states[1].params)
    assert_trees_equal(inference_variables(states[0])["params"], states[0].params)
    average = inference_variables(states[1])["params"]
    assert_trees_equal(average, states[1].opt_state[-1].average)
    assert np.abs(average["dense_1"]["kernel"] - states[1].params["dense_1"]["kernel"]).max() > 1e-5


def test_the_moments_are_pooled_over_all_examples(small: batches.Split) -> None:
    """The network in numpy: each batch, the short one too, is normalised by its own statistics."""
    with jax.enable_x64(True):
        tiny = Tiny(Config(widths=(16, 12), batch_norm_layers=(1, 2), batch_size=16, **ON))
        h = wide(tiny.hparams(noise=0.5, dropout_rate=0.5, average_decay=0.7))
        order = batches.epoch_batches(200, 16, seed=0, epoch=0)
        split = tuple(map(np.asarray, small))
        state: Any = wide(jax.jit(tiny.init)(h))
        state, _ = compiled.train_steps(state, h, split, order, program=tiny.program)
        found = compiled.measure_batch_norm(state, split, order, program=tiny.program)
        variables = jax.tree.map(np.asarray, inference_variables(state)["params"])
    before: dict[str, list[np.ndarray]] = {"batch_norm_1": [], "batch_norm_2": []}
    for row in order:
        x = split[0][row[row >= 0]].reshape(-1, 784) / 255
        for layer in (1, 2):
            dense, norm = variables[f"dense_{layer}"], variables[f"batch_norm_{layer}"]
            x = x @ dense["kernel"] + dense["bias"]
            before[f"batch_norm_{layer}"].append(x)
            x = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-3)
            x = np.maximum(x * norm["scale"] + norm["bias"], 0)
    for layer, inputs in before.items():
        every = np.concatenate(inputs)
        assert len(every) == 200
        np.testing.assert_allclose(found[layer]["mean"], every.mean(axis=0), atol=1e-10)
        np.testing.assert_allclose(found[layer]["var"], every.var(axis=0), rtol=1e-10)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with all of it."""
    return mnist_flax.fit(CONFIG, tmp_path_factory.mktemp("runs") / "run", figures=False, tensorboard=False).path


def saved(path: Path, step: int, run: run_info.RunInfo | None = None) -> Any:
    return load(path, run or run_info.read(path), step, warn=pytest.fail).state


@pytest.mark.usefixtures("dataset")
def test_resumed_equals_straight_from_inside_an_epoch_and_from_its_end(straight: Path, tmp_path: Path) -> None:
    for step in (5, 13, 18):
        path = tmp_path / f"{step}"
        shutil.copytree(straight, path)
        for later in checkpoint.steps(claim.checkpoints_dir(path)):
            if later > step:
                shutil.rmtree(claim.checkpoints_dir(path) / f"{later}")
        mnist_flax.fit(CONFIG, path, figures=False, tensorboard=False)
        assert_trees_equal(saved(path, 26), saved(straight, 26))


@pytest.mark.usefixtures("dataset")
def test_every_checkpoint_has_what_evaluation_saw(straight: Path, dataset: Any) -> None:
    """Also inside an epoch: the statistics of the averaged weights, over the epoch's batches."""
    split, run = tuple(dataset.read("train[:200]")), run_info.read(straight)
    for step, epoch in ((5, 0), (26, 1)):
        found = load(straight, run, step, warn=pytest.fail)
        order = batches.epoch_batches(200, 16, 0, epoch)
        want = compiled.measure_batch_norm(found.state, split, order, program=found.program)
        for layer in ("batch_norm_1", "batch_norm_2"):
            for leaf, value in want[layer].items():
                np.testing.assert_allclose(found.state.batch_stats[layer][leaf], value, rtol=1e-4, atol=1e-5)
    model, variables = mnist_flax.load(straight)
    images, labels = dataset.read("test[:203]")
    accuracy = (np.asarray(model.apply(variables, images)).argmax(axis=1) == labels).mean()
    evaluations = [line for line in mnist_flax.fit(CONFIG, straight).history if line["split"] == "eval"]
    assert evaluations[-1]["accuracy"] == accuracy


@pytest.mark.usefixtures("dataset")
def test_a_member_equals_its_lone_run(straight: Path, tmp_path: Path, dataset: Any) -> None:
    configs = [CONFIG, mnist_flax.Config(**vars(CONFIG) | {"hparams": Hyperparams(noise=0.1, seed=1)})]
    alone = [straight, mnist_flax.fit(configs[1], tmp_path / "alone", figures=False, tensorboard=False).path]
    opened = []
    for index, config in enumerate(configs):
        (tmp_path / f"{index}").mkdir()
        run = run_info.read(alone[index])
        opened.append(members.open_member(tmp_path / f"{index}", run_info.RunInfo(config, run.data, {}), pytest.fail))
    splits = (batches.Split(*dataset.read(name)) for name in (CONFIG.train_split, CONFIG.eval_split))
    *_, last = members.train(opened, *splits, lambda: False)
    members.save(opened, opened, last)
    for index, path in enumerate(alone):
        lines = [[line for line in list(history) if line["split"] == "train"] for history in
                 (opened[index].history["history"], mnist_flax.fit(configs[index], path).history)]  # fmt: skip
        for ours, theirs in zip(*lines, strict=True):
            np.testing.assert_allclose(ours["cross_entropy"], theirs["cross_entropy"], rtol=1e-3)
        member = saved(tmp_path / f"{index}", 26, run_info.read(path))
        ours, theirs = inference_variables(member), inference_variables(saved(path, 26))
        for layer in ("dense_1", "dense_2", "dense_3"):
            np.testing.assert_allclose(ours["params"][layer]["kernel"], theirs["params"][layer]["kernel"], atol=1e-3)

"""Every exported file, opened as a user would, gives the run's own logits."""

import dataclasses
import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import jax
import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import TINY_FLAGS, Command
from exporting import KINDS, MODULES
from py_mini_racer import MiniRacer

import mnist_flax
from mnist_flax.config import Config, Hyperparams
from mnist_flax.data import batches, datasets
from mnist_flax.export import __main__ as export
from mnist_flax.export import keras as export_keras
from mnist_flax.export.network import TrainedNetwork
from mnist_flax.metrics import softmax
from mnist_flax.model import make_model
from mnist_flax.process import cli
from mnist_flax.workdir import run_info

DEEP = Config(
    hparams=Hyperparams(dropout_rate=0.5, l2=0.01, max_norm=2.0, learning_rate=0.003),
    widths=(7, 33, 5), batch_norm_layers=(1, 3), l2_layers=(1, 4), max_norm_layers=(2,),
)  # fmt: skip
VARIANTS: dict[str, tuple[Config, list[int], int]] = {  # config, image_shape, classes
    "deep": (DEEP, [28, 28, 1], 3),
    "no hidden layer": (Config(widths=(), batch_norm_layers=(), l2_layers=()), [28, 28, 1], 10),
    "colour": (DEEP, [5, 4, 3], 11),
}
CASES = [("colour", suffix) for suffix in KINDS if suffix != ".html"]
CASES += [("no hidden layer", suffix) for suffix in KINDS] + [("deep", ".html")]
ABOUT = {"step": 7, "commit": '"</script>\n\u00e9', "accuracy": 0.5}


@pytest.fixture(autouse=True)
def keras_promotes_ranks() -> Iterator[None]:
    with jax.numpy_rank_promotion("allow"):
        yield


def logits_of(path: Path, images: np.ndarray) -> np.ndarray:
    """What a user gets, by each runtime's own means."""
    match path.suffix:
        case ".keras" | ".h5":
            model = keras.models.load_model(path)
            return np.asarray(keras.Model(model.inputs[0], model.get_layer("logits").output)(images))
        case ".onnx":
            onnx.checker.check_model(str(path), full_check=True)
            session = onnxruntime.InferenceSession(path)
            logits, probabilities = session.run(None, {"images": images})
            np.testing.assert_allclose(probabilities, softmax(logits), atol=1e-6)
            return logits
        case ".stablehlo":
            exported = jax.export.deserialize(bytearray(path.read_bytes()))
            assert exported.platforms == ("cpu", "cuda", "tpu")
            return np.asarray(exported.call(images))
        case _:
            [script] = re.findall(r'<script id="network">(.*?)</script>', path.read_text(encoding="utf-8"), re.S)
            with MiniRacer() as engine:
                engine.eval(script)
                flat = images.reshape(len(images), -1).tolist()
                return np.array([engine.eval(f"Array.from(forward({image}))") for image in map(json.dumps, flat)])


def metadata_of(path: Path) -> dict[str, Any]:
    """By the ways that the documentation names."""
    match path.suffix:
        case ".keras":
            return json.loads(zipfile.ZipFile(path).read("mnist_flax.json"))
        case ".h5":
            with h5py.File(path) as file:
                return json.loads(file["mnist_flax"].asstr()[()])
        case ".onnx":
            texts = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
            plain = {"commit", "exported_at", "dataset", "split"}
            return {name: text if name in plain else json.loads(text) for name, text in texts.items()}
        case ".stablehlo":
            return json.loads(subprocess.run(["tail", "-n", "1", path], capture_output=True, check=True).stdout)
        case _:
            text = path.read_text(encoding="utf-8")
            [about] = re.findall(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', text, re.S)
            return json.loads(about)


@functools.cache
def made(variant: str) -> tuple[TrainedNetwork, np.ndarray, np.ndarray]:
    """A network with random weights, BatchNorm's statistics among them; seven images, and their logits."""
    config, shape, classes = VARIANTS[variant]
    model, rng = make_model(config.static(), classes), np.random.default_rng(0)
    images = rng.integers(0, 256, [7, *shape], np.uint8)
    leaves = jax.eval_shape(model.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda leaf: rng.uniform(0.1, 0.7, leaf.shape).astype(np.float32) - 0.05, leaves)
    logits = np.asarray(jax.jit(model.apply)(variables, images))
    assert logits.std(axis=0).min() > 0.01  # something to compare
    names = [str(c) for c in range(classes)]
    return TrainedNetwork(config, tuple(shape), names, model, {"batch_stats": {}} | variables), images, logits


@pytest.mark.parametrize(("variant", "suffix"), CASES)
def test_any_network_and_any_batch(variant: str, suffix: str, tmp_path: Path) -> None:
    network, images, want = made(variant)
    path = tmp_path / f"network{suffix}"
    MODULES[KINDS[suffix]].write(path, network, ABOUT)
    for n in (1, 7):
        np.testing.assert_allclose(logits_of(path, images[:n]), want[:n], rtol=1e-5, atol=1e-5)
    assert metadata_of(path).items() >= ABOUT.items()


@pytest.fixture(scope="module")
def digits(dataset: datasets.Dataset) -> batches.Split:
    """The evaluation split of the tiny run, as `keras.datasets.mnist` has it: uint8 [203, 28, 28], uint8 [203]."""
    images, labels = dataset.read("test[:203]")
    return batches.Split(np.asarray(images)[..., 0], np.asarray(labels, np.uint8))


@pytest.fixture(scope="module")
def written(finished: Path, command: Command, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every format of the tiny run; Keras's, which says most, by the command as a user gives it."""
    root = tmp_path_factory.mktemp("exported")
    paths = {suffix: root / f"tiny{suffix}" for suffix in KINDS}
    for suffix, path in paths.items():
        if suffix != ".keras":
            export.run(export.Args(finished, KINDS[suffix], path), cli.StopSignals())
            continue
        result = command("export", "--workdir", finished, "--format", "keras", "--out", path)
        assert (result.returncode, result.stderr) == (0, ""), result.stderr
        [line] = result.stdout.splitlines()
        assert line.startswith(f"{path} (keras, {path.stat().st_size:,} bytes): step 26 of finished;")
        assert "logits of 203 examples" in line and float(re.findall(r"by (\S+) at most", line)[0]) <= 1e-4
    assert {path.name for path in root.iterdir()} == {path.name for path in paths.values()}
    return paths


@pytest.fixture(scope="module")
def bfloat16(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a tiny run that multiplied in bfloat16."""
    path = tmp_path_factory.mktemp("runs") / "bfloat16"
    result = command("train", "--workdir", path, *TINY_FLAGS, "--precision", "bfloat16")
    assert (result.returncode, result.stderr) == (0, "")
    return path


@pytest.mark.parametrize("suffix", KINDS)
def test_the_command(suffix: str, written: dict[str, Path], finished: Path, digits: batches.Split) -> None:
    model, variables = mnist_flax.load(finished)
    want = np.asarray(model.apply(variables, digits.images))
    got = logits_of(written[suffix], digits.images[..., None])
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    about, recorded = metadata_of(written[suffix]), json.loads((finished / "config.json").read_text())
    [evaluation] = [
        line for line in map(json.loads, (finished / "metrics.jsonl").read_text().splitlines())
        if (line["split"], line["step"]) == ("eval", 26)
    ]  # fmt: skip
    assert about["accuracy"] == evaluation["accuracy"] == (got.argmax(axis=1) == digits.labels).mean()
    assert (about["step"], about["examples"], about["split"]) == (26, 203, "test[:203]")
    assert about["config"] == recorded["config"] and about["commit"] == recorded["commit"] != ""
    assert about["dataset"] == "mnist" and about["class_names"] == [str(digit) for digit in range(10)]
    assert about["image_shape"] == [28, 28, 1] and about["versions"].items() >= run_info.versions().items()
    assert about["trained_under"] == recorded["versions"]


def test_an_export_says_by_which_code_the_run_was_trained(finished: Path) -> None:
    run = dataclasses.replace(run_info.read(finished), commit="of another day")
    about = export.metadata(run, 26, np.eye(10), np.arange(10))
    assert (about["commit"], about["exported_at"]) == ("of another day", run_info.commit())


def test_keras_layers_are_the_tutorials(tmp_path: Path) -> None:
    network, _, _ = made("deep")
    export_keras.write(tmp_path / "deep.keras", network, ABOUT)
    model = keras.models.load_model(tmp_path / "deep.keras")
    hidden = [["dense_1", "batch_norm_1"], ["dense_2"], ["dense_3", "batch_norm_3"]]
    names = [[*start, f"relu_{i}", f"dropout_{i}"] for i, start in enumerate(hidden, start=1)]
    assert [layer.name for layer in model.layers] == ["scaled", "flat", *sum(names, []), "logits", "probabilities"]
    layers = {layer.name: layer for layer in model.layers}
    dense = [layers[name] for name in ("dense_1", "dense_2", "dense_3", "logits")]
    assert [layer.kernel_regularizer and float(layer.kernel_regularizer.l2) for layer in dense] == [
        0.01,
        None,
        None,
        0.01,
    ]
    assert [layer.kernel_constraint and layer.kernel_constraint.max_value for layer in dense] == [None, 2.0, None, None]
    assert layers["dropout_2"].rate == 0.5
    norm = layers["batch_norm_3"]
    assert (norm.momentum, norm.epsilon) == (0.99, 1e-3)
    adam = model.optimizer
    assert float(adam.learning_rate.value) == np.float32(0.003)
    assert (adam.beta_1, adam.beta_2, adam.epsilon) == (0.9, 0.999, 1e-7)


# As a stranger to this project opens them; both kinds of arrays, both shapes, and training goes on.
REOPEN = """
import sys, warnings
import numpy as np
import keras
if keras.backend.backend() == "jax":
    warnings.simplefilter("error")
known = np.load(sys.argv[1])
images, labels = known["images"], known["labels"]
for path, images in zip(sys.argv[2:], (images, images.astype("float32")[..., None]), strict=True):
    model = keras.models.load_model(path)
    if images.ndim == 3:
        got = model.predict(images, verbose=0)
        assert np.abs(got - known["probabilities"]).max() < 1e-5, path
    loss, accuracy = model.evaluate(images, labels, verbose=0)
    assert abs(loss - known["loss"]) < 1e-4 and abs(accuracy - known["accuracy"]) < 1e-6, (path, loss, accuracy)
    model.fit(images, labels, verbose=0)
    assert model.evaluate(images, labels, verbose=0)[0] < loss, path
"""


@pytest.mark.parametrize("backend", ["jax", "tensorflow", "torch"])
def test_keras_files_reopen(
    backend: str, written: dict[str, Path], finished: Path, digits: batches.Split, tmp_path: Path
) -> None:
    if not importlib.util.find_spec(backend):
        pytest.skip(f"{backend} is not installed: the bench extra has it")
    model, variables = mnist_flax.load(finished)
    probabilities = softmax(np.asarray(model.apply(variables, digits.images)))
    cross_entropy = -np.log(probabilities[np.arange(len(digits.labels)), digits.labels]).mean()
    penalty = 1e-3 * np.square(variables["params"]["dense_2"]["kernel"]).sum()
    accuracy = (probabilities.argmax(axis=1) == digits.labels).mean()
    known = tmp_path / "known.npz"
    np.savez(known, images=digits.images, labels=digits.labels, probabilities=probabilities,
             loss=cross_entropy + penalty, accuracy=accuracy)  # fmt: skip
    env = os.environ | {"KERAS_BACKEND": backend}
    env.pop("JAX_NUMPY_RANK_PROMOTION")
    line = [sys.executable, "-c", REOPEN, known, written[".keras"], written[".h5"]]
    result = subprocess.run(line, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("suffix", KINDS)
def test_a_run_in_bfloat16_is_exported_in_float32(suffix: str, bfloat16: Path, digits: batches.Split) -> None:
    path = bfloat16.with_suffix(suffix)
    export.run(export.Args(bfloat16, KINDS[suffix], path), cli.StopSignals())
    model, variables = mnist_flax.load(bfloat16)
    images = digits.images[..., None]
    got, rounded = logits_of(path, images), np.asarray(model.apply(variables, images))
    exact = np.asarray(model.clone(precision="float32").apply(variables, images))
    np.testing.assert_allclose(got, exact, rtol=0, atol=1e-5)
    assert np.abs(rounded - exact).max() > 1e-3
    assert metadata_of(path)["config"]["precision"] == "bfloat16"

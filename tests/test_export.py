"""Every exported file, opened as a user would, gives the run's own logits; what does not is never left on disk."""

import functools
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import jax
import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import Command
from py_mini_racer import MiniRacer

import mnist_flax
from mnist_flax import console, data, export, export_keras, export_onnx, export_page, export_stablehlo, record
from mnist_flax.config import Config, Hyperparams
from mnist_flax.metrics import softmax
from mnist_flax.state import make_model

MODULES = {"keras": export_keras, "onnx": export_onnx, "stablehlo": export_stablehlo, "html": export_page}
KINDS = {".keras": "keras", ".h5": "keras", ".onnx": "onnx", ".stablehlo": "stablehlo", ".html": "html"}
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
            plain = {"commit", "dataset", "split"}
            return {name: text if name in plain else json.loads(text) for name, text in texts.items()}
        case ".stablehlo":
            return json.loads(subprocess.run(["tail", "-n", "1", path], capture_output=True, check=True).stdout)
        case _:
            text = path.read_text(encoding="utf-8")
            [about] = re.findall(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', text, re.S)
            return json.loads(about)


@functools.cache
def made(variant: str) -> tuple[record.Run, dict[str, Any], np.ndarray, np.ndarray]:
    """A network with random weights, BatchNorm's statistics among them; seven images, and their logits."""
    config, shape, classes = VARIANTS[variant]
    model, rng = make_model(config, classes), np.random.default_rng(0)
    images = rng.integers(0, 256, [7, *shape], np.uint8)
    leaves = jax.eval_shape(model.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda leaf: rng.uniform(0.1, 0.7, leaf.shape).astype(np.float32) - 0.05, leaves)
    run = record.Run(config, {"image_shape": shape, "class_names": [str(c) for c in range(classes)]}, {})
    logits = np.asarray(jax.jit(model.apply)(variables, images))
    assert logits.std(axis=0).min() > 0.01  # something to compare
    return run, {"batch_stats": {}} | variables, images, logits


@pytest.mark.parametrize(("variant", "suffix"), CASES)
def test_any_network_and_any_batch(variant: str, suffix: str, tmp_path: Path) -> None:
    run, variables, images, want = made(variant)
    path = tmp_path / f"network{suffix}"
    MODULES[KINDS[suffix]].write(path, run, variables, ABOUT)
    for n in (1, 7):
        np.testing.assert_allclose(logits_of(path, images[:n]), want[:n], rtol=1e-5, atol=1e-5)
    assert metadata_of(path).items() >= ABOUT.items()


@pytest.fixture(scope="module")
def digits(dataset: data.Dataset) -> data.Split:
    """The evaluation split of the tiny run, as `keras.datasets.mnist` has it: uint8 [203, 28, 28], uint8 [203]."""
    images, labels = dataset.read("test[:203]")
    return data.Split(np.asarray(images)[..., 0], np.asarray(labels, np.uint8))


def run_here(
    args: list[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command, in this process."""
    monkeypatch.setattr(sys, "argv", ["mnist_flax.export", *map(str, args)])
    with pytest.raises(SystemExit) as exit_:
        console.main(export.Args, export.run)
    return int(exit_.value.code or 0), *capsys.readouterr()


@pytest.fixture(scope="module")
def written(finished: Path, command: Command, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every format of the tiny run; Keras's, which says most, by the command as a user gives it."""
    root = tmp_path_factory.mktemp("exported")
    paths = {suffix: root / f"tiny{suffix}" for suffix in KINDS}
    for suffix, path in paths.items():
        if suffix != ".keras":
            export.run(export.Args(finished, KINDS[suffix], path), console.StopSignals())
            continue
        result = command("export", "--workdir", finished, "--format", "keras", "--out", path)
        assert (result.returncode, result.stderr) == (0, ""), result.stderr
        [line] = result.stdout.splitlines()
        assert line.startswith(f"{path} (keras, {path.stat().st_size:,} bytes): step 26 of finished;")
        assert "logits of 203 examples" in line and float(re.findall(r"by (\S+) at most", line)[0]) <= 1e-4
    assert {path.name for path in root.iterdir()} == {path.name for path in paths.values()}
    return paths


@pytest.mark.parametrize("suffix", KINDS)
def test_the_command(suffix: str, written: dict[str, Path], finished: Path, digits: data.Split) -> None:
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
    assert about["config"] == recorded["config"] and about["commit"] == record.commit()
    assert about["dataset"] == "mnist" and about["class_names"] == [str(digit) for digit in range(10)]
    assert about["image_shape"] == [28, 28, 1] and about["versions"].items() >= record.versions().items()
    assert about["trained_under"] == recorded["versions"]


def test_keras_layers_are_the_tutorials(tmp_path: Path) -> None:
    run, variables, _, _ = made("deep")
    export_keras.write(tmp_path / "deep.keras", run, variables, ABOUT)
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
    backend: str, written: dict[str, Path], finished: Path, digits: data.Split, tmp_path: Path
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


def shifted_by(amount: float, write: export.Write) -> export.Write:
    """A writer that gets one bias of the output layer wrong, and with it one logit."""

    def wrong(path: Path, run: record.Run, variables: dict[str, Any], about: dict[str, Any]) -> None:
        params = {layer: dict(leaves) for layer, leaves in variables["params"].items()}
        params["dense_3"]["bias"] = params["dense_3"]["bias"] + np.float32(amount) * (np.arange(10) == 4)
        write(path, run, variables | {"params": params}, about)

    return wrong


REFUSED = [(".keras", 2e-4), (".onnx", 2e-4), (".stablehlo", 2e-4), (".html", 2e-4), (".onnx", np.nan)]


@pytest.mark.parametrize(("suffix", "amount"), REFUSED)
def test_a_wrong_file_is_refused(
    suffix: str,
    amount: float,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    out, module = tmp_path / f"tiny{suffix}", MODULES[KINDS[suffix]]
    out.write_text("the good one of yesterday")
    monkeypatch.setattr(module, "write", shifted_by(amount, module.write))
    args = ["--workdir", finished, "--format", KINDS[suffix], "--out", out]
    code, stdout, stderr = run_here(args, monkeypatch, capsys)
    assert (code, stdout) == (1, "")
    assert re.fullmatch(r"error: the .* differs from the run's by (0\.0002|nan), more than 0\.0001; .*\n", stderr)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    assert out.read_text() == "the good one of yesterday"


def test_a_file_is_replaced_by_one_that_is_right_to_the_tolerance(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "tiny.onnx"
    out.write_text("that of yesterday")
    monkeypatch.setattr(export_onnx, "write", shifted_by(5e-5, export_onnx.write))
    code, stdout, _ = run_here(["--workdir", finished, "--format", "onnx", "--out", out], monkeypatch, capsys)
    assert code == 0 and re.search(r"differ from the run's by [45]\.\de-05 at most", stdout)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    onnx.checker.check_model(str(out))


def disk_full(path: Path, *_: object) -> None:
    path.write_bytes(b"half")
    raise OSError(28, "No space left on device")


def killed(path: Path, *args: Any) -> None:
    export_onnx_write(path, *args)
    os.kill(os.getpid(), signal.SIGTERM)


export_onnx_write = export_onnx.write
WRITERS: dict[str, tuple[Callable[..., None], int, str]] = {
    "disk full": (disk_full, 1, r"error: \[Errno 28\] No space left on device\n"),
    "killed": (killed, 143, r"stopped by SIGTERM: .*tiny\.onnx was not written\n"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_half_written_is_removed(
    name: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write, want, message = WRITERS[name]
    monkeypatch.setattr(export_onnx, "write", write)
    args = ["--workdir", finished, "--format", "onnx", "--out", tmp_path / "tiny.onnx"]
    code, stdout, stderr = run_here(args, monkeypatch, capsys)
    assert (code, stdout) == (want, "") and re.fullmatch(message, stderr), stderr
    assert not list(tmp_path.iterdir())


BAD_ARGUMENTS = {
    "--format onnx --out NEW.onnx": "workdir",
    "--workdir RUN --out NEW.onnx": "format",
    "--workdir RUN --format onnx": "out",
    "--workdir RUN --format tflite --out NEW.tflite": "format|tflite",
    "--workdir NO --format onnx --out NEW.onnx": "is no run",
    "--workdir RUN --format onnx --out NEW.keras": r"out='.*NEW.keras' is no name for format=onnx; give .* in \.onnx",
    "--workdir RUN --format keras --out NEW": r"ending in \.keras or \.h5",
    "--workdir RUN --format keras --out NO/NEW.h5": r"cannot be written: .*NO is no directory; create it",
    "--workdir RUN --format html --out FILE/NEW.html": r"cannot be written: .*FILE is no directory",
    "--workdir RUN --format onnx --out DIR.onnx": "is a directory; give the name of a file",
    "--workdir RUN --format onnx --out NEW.onnx --step last": "step='last' is no checkpoint",
    "--workdir RUN --format onnx --out NEW.onnx --step 27": "step=27 has no checkpoint .* one of: 13, 26",
    "--workdir RUN --format onnx --out NEW.onnx --data-dir FILE/data": "data_dir=.* cannot be used",
    "--workdir COLOUR --format html --out NEW.html": r"images of \[28, 28, 1\] .*\[5, 4, 3\] and 10;",
    "--workdir MANY --format html --out NEW.html": r"at most 10 classes, and this run's are \[28, 28, 1\] and 11;",
}


@pytest.fixture(scope="module")
def places(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("places")
    (root / "RUN").symlink_to(finished)
    (root / "FILE").write_text("precious")
    (root / "DIR.onnx").mkdir()
    tree = json.loads((finished / "config.json").read_text())
    for name, changes in {"COLOUR": {"image_shape": [5, 4, 3]}, "MANY": {"class_names": list("0123456789A")}}.items():
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps(tree | {"data": tree["data"] | changes}))
    return root


def snapshot(root: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


@pytest.mark.parametrize("line", BAD_ARGUMENTS)
def test_bad_arguments(line: str, places: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    args = [places / word if re.match("[A-Z]{2}", word) else word for word in line.split()]
    before = snapshot(places)
    code, stdout, stderr = run_here(args, monkeypatch, capsys)
    assert (code, stdout) == (2, ""), stderr
    assert stderr.startswith("error: ") and stderr.count("\n") == 1
    assert re.search(BAD_ARGUMENTS[line], stderr), stderr
    assert snapshot(places) == before


@pytest.mark.parametrize(
    ("suffix", "package"), [(".h5", "keras"), (".onnx", "onnxruntime"), (".onnx", "onnx"), (".html", "py_mini_racer")]
)
def test_a_missing_extra_is_named(
    suffix: str,
    package: str,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    module = MODULES[KINDS[suffix]].__name__
    monkeypatch.delitem(sys.modules, module)
    monkeypatch.delattr(mnist_flax, module.split(".")[1])
    monkeypatch.setitem(sys.modules, package, None)
    args = ["--workdir", finished, "--format", KINDS[suffix], "--out", tmp_path / f"tiny{suffix}"]
    code, stdout, stderr = run_here(args, monkeypatch, capsys)
    assert (code, stdout) == (2, "") and stderr.count("\n") == 1
    assert package in stderr and stderr.endswith("; pip install 'mnist_flax[export]'\n")
    assert not list(tmp_path.iterdir())

"""An ensemble of a sweep's networks: its probabilities, its report and its ONNX file against numpy and scikit-learn."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnxruntime
import pytest
from ensembling import row, write_results, write_run
from exporting import run_here
from scipy.special import log_softmax, logsumexp, softmax
from sklearn.metrics import log_loss

import mnist_flax
from mnist_flax import inference
from mnist_flax.config import Config, Hyperparams
from mnist_flax.data import datasets
from mnist_flax.evaluate import __main__ as evaluate
from mnist_flax.export import onnx as export_onnx
from mnist_flax.export.network import TrainedNetwork
from mnist_flax.metrics import log_mean_softmax, wilson_interval
from mnist_flax.model import make_model
from mnist_flax.process import cli

SPLITS: dict[str, Any] = {"train_split": "train[:200]", "eval_split": "test[:203]", "eval_batch_size": 100}
# Three networks of one program, and two of others; as different as networks of one sweep may be.
CONFIGS = [Config(hparams=Hyperparams(seed=seed), widths=(16, 16), **SPLITS) for seed in range(3)]
CONFIGS += [Config(hparams=Hyperparams(seed=3), widths=(8,), batch_norm_layers=(1,), l2_layers=(), **SPLITS)]
CONFIGS += [Config(widths=(16, 16), precision="bfloat16", **SPLITS)]
SHARPNESS = [1.0, 2.0, 3.0, 4.0, 2.0]


@pytest.fixture(scope="module")
def sweep(dataset: datasets.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five final networks, of which the second is the best by validation, the third is the next, and so on."""
    path = tmp_path_factory.mktemp("ensemble") / "sweep"
    scores, rows = [0.1, 0.9, 0.8, 0.7, 0.6], []
    for number, (config, sharpness) in enumerate(zip(CONFIGS, SHARPNESS, strict=True)):
        write_run(path / f"final/{number:04d}", config, dataset, sharpness)
        rows.append(row("selection", None, scores[number], kind=number))
        rows.append(row("final", f"final/{number:04d}", 0.5, kind=number, seed=1000))
    write_results(path, rows)
    return path


ORDER = [1, 2, 3, 4, 0]


def probabilities_of(sweep: Path, number: int, images: np.ndarray, **changes: Any) -> np.ndarray:
    """The mean of the probabilities of the first networks, one after the other: float64 [N, 10]."""
    total = np.zeros((len(images), 10))
    for index in ORDER[:number]:
        model, variables = mnist_flax.load(sweep / f"final/{index:04d}")
        total += softmax(np.asarray(model.clone(**changes).apply(variables, images), np.float64), axis=1)
    return total / number


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Guo et al. 2017, equation 3, with 15 bins, bin by bin."""
    confidence, hit = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    gaps = []
    for b in range(15):
        if (inside := (b / 15 < confidence) & (confidence <= (b + 1) / 15)).any():
            gaps.append(inside.mean() * abs(hit[inside].mean() - confidence[inside].mean()))
    return sum(gaps)


def evaluated(
    args: list[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["mnist_flax.evaluate", *map(str, args)])
    with pytest.raises(SystemExit) as exit_:
        cli.main(evaluate.Args, evaluate.run)
    return int(exit_.value.code or 0), *capsys.readouterr()


@pytest.mark.parametrize("number", [2, 5])
def test_the_report_is_that_of_the_mean_of_the_probabilities(
    number: int,
    sweep: Path,
    dataset: datasets.Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    images, labels = map(np.asarray, dataset.read("test[:203]"))
    out = tmp_path / "p.csv"
    flags = ["--workdir", sweep, "--ensemble", number, "--json", "--no-figures", "--predictions", out]
    code, stdout, stderr = evaluated(flags, monkeypatch, capsys)
    assert (code, stderr) == (0, "")
    report = json.loads(stdout)
    want = probabilities_of(sweep, number, images)
    lines = [[*map(float, line)] for line in [*csv.reader(out.open())][1:]]
    np.testing.assert_allclose(np.array(lines)[:, 3:], want, atol=1e-6)
    correct = int((want.argmax(axis=1) == labels).sum())
    assert (report["examples"], report["correct"], report["accuracy"]) == (203, correct, correct / 203)
    assert report["accuracy_interval"] == [*wilson_interval(correct, 203)]
    assert report["cross_entropy"] == pytest.approx(log_loss(labels, want, labels=range(10)), abs=1e-5)
    assert report["expected_calibration_error"] == pytest.approx(calibration_error(want, labels), abs=1e-5)
    assert (report["stage"], report["split"], report["chosen_on_it"]) == ("final", "test[:203]", False)
    assert report["best_single"] == "final/0001"
    assert [each["network"] for each in report["networks"]] == [f"final/{index:04d}" for index in ORDER[:number]]
    for network in report["networks"]:  # as the command says of each alone
        _, stdout, _ = evaluated(
            ["--workdir", sweep / network["network"], "--json", "--no-figures"], monkeypatch, capsys
        )
        alone = json.loads(stdout)
        assert all(network[name] == pytest.approx(alone[name], abs=1e-6) for name in network.keys() - {"network"})
    assert json.loads((sweep / "ensemble/evaluation.json").read_text()) == report
    assert {each["accuracy"] for each in report["networks"]} != {report["accuracy"]}


def test_all_networks_are_one_compiled_program(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jit, made = jax.jit, []
    monkeypatch.setattr(jax, "jit", lambda *args, **kwargs: made.append(jit(*args, **kwargs)) or made[-1])
    _, networks = inference.load_ensemble(sweep, 5, None)
    made.clear()
    pairs = [(network.model, network.variables) for network in networks]
    logits = inference.logits_of_each(pairs, np.zeros((203, 28, 28, 1), np.uint8), 100)  # three batches
    assert logits.shape == (5, 203, 10) and [each._cache_size() for each in made] == [1]


def test_what_is_printed_and_drawn(sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    code, stdout, stderr = evaluated(["--workdir", sweep, "--ensemble", "3"], monkeypatch, capsys)
    assert (code, stderr) == (0, "")
    assert stdout.startswith("mnist test[:203], mean of 3 networks (final): ")
    assert "best single network by validation (of equals, the first), final/0001: " in stdout
    assert stdout.count("expected calibration error") == 2 and "too good" not in stdout
    drawn = {path.name for path in (sweep / "ensemble/figures").iterdir()}
    assert drawn == {"confusion.png", "mistakes.png", "reliability.png"}


def test_networks_that_were_chosen_on_the_split_are_said_to_be(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "members").symlink_to(sweep / "final")
    write_results(tmp_path, [row("selection", f"members/000{i}", 0.5, seed=i) for i in range(3)])
    for flags, seen in ((["--split", "train[500:600]"], False), (["--split", "test[200:300]"], True), ([], True)):
        flags = ["--workdir", tmp_path, "--ensemble", "2", "--no-figures", *flags]
        code, stdout, _ = evaluated(flags, monkeypatch, capsys)
        assert code == 0 and ("were chosen by their accuracy on this split" in stdout) == seen


def test_a_network_that_is_not_at_its_last_step_is_refused(
    dataset: datasets.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for index, left in enumerate((0, 3)):
        write_run(tmp_path / f"final/000{index}", CONFIGS[index], dataset, left=left)
    write_results(tmp_path, [row("final", f"final/000{i}", 0.5, seed=i) for i in range(2)])
    code, stdout, stderr = evaluated(["--workdir", tmp_path, "--ensemble", "2"], monkeypatch, capsys)
    assert (code, stdout) == (2, "")
    assert stderr.endswith("has final/0001 at step 5 of 8; run the sweep's command again, which trains it to its end\n")
    assert not (tmp_path / "ensemble").exists()


def test_a_link_in_place_of_the_ensembles_directory_is_refused(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "final").symlink_to(sweep / "final")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "ensemble").symlink_to(tmp_path / "elsewhere")
    write_results(tmp_path, [row("final", f"final/000{i}", 0.5, seed=i) for i in range(2)])
    code, _, stderr = evaluated(["--workdir", tmp_path, "--ensemble", "2"], monkeypatch, capsys)
    assert code == 2 and "has a symbolic link, ensemble" in stderr and not [*(tmp_path / "elsewhere").iterdir()]


def test_the_onnx_file_gives_the_mean_of_the_probabilities(
    sweep: Path,
    dataset: datasets.Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    out = tmp_path / "ensemble.onnx"
    flags = ["--workdir", sweep, "--ensemble", "5", "--format", "onnx", "--out", out]
    code, stdout, stderr = run_here(flags, monkeypatch, capsys)
    assert (code, stderr) == (0, "") and "): mean of 5 networks of sweep; opened again" in stdout
    images, labels = map(np.asarray, dataset.read("test[:203]"))
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    logits, probabilities = map(np.asarray, session.run(["logits", "probabilities"], {"images": images}))
    want = probabilities_of(sweep, 5, images, precision="float32")
    np.testing.assert_allclose(probabilities, want, atol=1e-6)
    np.testing.assert_allclose(np.exp(logits), want, atol=1e-6)
    texts = session.get_modelmeta().custom_metadata_map
    about = {name: json.loads(texts[name]) for name in ("networks", "accuracy")}
    assert [each["network"] for each in about["networks"]] == [f"final/{index:04d}" for index in ORDER]
    for each in about["networks"]:
        recorded = json.loads((sweep / each["network"] / "config.json").read_text())
        assert (each["config"], each["commit"], each["step"]) == (recorded["config"], recorded["commit"], 8)
    assert about["accuracy"] == (want.argmax(axis=1) == labels).mean() and "config" not in texts


def test_probabilities_that_float32_cannot_hold_have_logarithms(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    logits = 1e4 * rng.normal(size=(3, 50, 7))
    want = logsumexp(log_softmax(logits, axis=2), axis=0) - np.log(3)
    np.testing.assert_allclose(log_mean_softmax(logits), want, rtol=1e-12, atol=1e-12)
    # In ONNX too: two linear networks whose logits are up to 255 apart, and exp(-255) is 0 in float32.
    config = Config(widths=(), batch_norm_layers=(), l2_layers=())
    pixels = rng.integers(256, size=(20, 1, 1, 1), dtype=np.uint8)
    networks = []
    for factor in (-255.0, 254.0):
        dense = {"kernel": np.array([[factor, 0.0]], np.float32), "bias": np.zeros(2, np.float32)}
        variables = {"params": {"dense_1": dense}, "batch_stats": {}}
        networks.append(TrainedNetwork(config, (1, 1, 1), ["0", "1"], make_model(config.static(), 2), variables))
    export_onnx.write(tmp_path / "x.onnx", networks, {})
    x = pixels.reshape(20, 1) / 255.0
    logits = np.stack([np.concatenate([factor * x, 0 * x], axis=1) for factor in (-255.0, 254.0)])
    want = logsumexp(log_softmax(logits, axis=2), axis=0) - np.log(2)
    np.testing.assert_allclose(export_onnx.logits(tmp_path / "x.onnx", pixels), want, atol=1e-4)

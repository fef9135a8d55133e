"""The commands, as a user runs them: real processes, a real workdir."""

import csv
import json
import os
import pty
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import PATIENCE, TINY_FLAGS, Command
from PIL import Image

import mnist_flax
from mnist_flax import metrics
from mnist_flax.config import Config, Hyperparams, without_effect
from mnist_flax.data import datasets
from mnist_flax.evaluate.report import print_report
from mnist_flax.workdir import run_info


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_the_workdir_of_a_finished_run(finished: Path) -> None:
    assert sorted(p.name for p in finished.iterdir()) == [
        ".lock",
        ".saved",
        "README.md",
        "checkpoints",
        "config.json",
        "metrics.jsonl",
    ]
    assert sorted(p.name for p in (finished / "checkpoints").iterdir()) == ["13", "26"]
    config = json.loads((finished / "config.json").read_text())
    assert config["config"]["widths"] == [16, 16] and config["config"]["hparams"]["learning_rate"] == 1e-3
    assert {"python", "jax", "flax", "optax", "orbax-checkpoint"} <= config["versions"].keys()
    lines = lines_of(finished)
    assert [(line["step"], line["epoch"], line["split"]) for line in lines] == [
        (13, 1, "train"), (13, 1, "eval"), (26, 2, "train"), (26, 2, "eval"),
    ]  # fmt: skip
    keys = "step epoch split loss cross_entropy l2_penalty accuracy examples learning_rate seconds"
    assert all(list(line) == keys.split() for line in lines)
    assert [line["examples"] for line in lines] == [200, 203, 200, 203]
    assert lines[2]["loss"] < lines[0]["loss"]
    for line in lines:
        assert line["loss"] == pytest.approx(line["cross_entropy"] + line["l2_penalty"])


def test_what_a_pipe_gets(command: Command, tmp_path: Path) -> None:
    """Plain lines: no escape codes, no bar."""
    result = command("train", "--workdir", "~/exp", *TINY_FLAGS, env={"HOME": str(tmp_path), "XDG_CACHE_HOME": cache()})
    assert result.returncode == 0 and result.stderr == ""
    assert "\x1b" not in result.stdout and "\r" not in result.stdout
    text = result.stdout.splitlines()
    assert (
        "mnist: 200 training images (train[:200]), 203 for evaluation (test[:203]), uint8 28 x 28 x 1, 10 classes"
        in text
    )
    assert "2 epochs of 13 steps of 16 on 1 cpu device" in text
    assert [line.split()[1] for line in text if line.startswith("epoch")] == ["1/2", "2/2"]
    last = lines_of(tmp_path / "exp")[-1]
    right = round(last["accuracy"] * 203)
    assert (
        text[-1] == f"test[:203] accuracy: {right} of 203 ({right / 203:.2%}) after 2 epochs. Saved in {tmp_path}/exp"
    )
    assert any(line.split() == ["dense_1", "kernel", "784", "x", "16,", "bias", "16", "12,560"] for line in text)


def cache() -> str:
    """Where the prepared data of this test run lives."""
    return str(datasets.default_data_dir().parents[1])


def read_all(leader: int) -> bytes:
    """Everything that is written to a terminal."""
    seen = b""
    while True:
        try:
            seen += os.read(leader, 65536)
        except OSError:  # the other end is closed
            os.close(leader)
            return seen


def test_a_class_may_have_any_name(capsys: pytest.CaptureFixture) -> None:
    """Rich takes [/x] for an end of a style, which it is not, and :x: for a picture."""
    names = ["[/x]", "[red]dot", ":x:"]
    report = {"dataset": "x", "split": "test", "step": 1, "expected_calibration_error": 0.0}
    report |= metrics.evaluation_report(np.eye(3), np.arange(3))
    print_report(report, names)
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)


def test_a_terminal_gets_a_bar(tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    line = [sys.executable, "-m", "mnist_flax.train", "--workdir", str(tmp_path / "exp"), *TINY_FLAGS]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(line, stdout=follower, stderr=follower, env=env)
    os.close(follower)
    seen = read_all(leader)
    assert process.wait() == 0
    assert b"\x1b[" in seen and b"26/26" in seen and "━".encode() in seen and b"epoch 2/2" in seen


def test_the_same_command_again_does_nothing(command: Command, finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "exp"
    shutil.copytree(finished, path)
    before = snapshot(path)
    result = command("train", "--workdir", path, *TINY_FLAGS)
    assert result.returncode == 0 and "is finished: nothing to do." in result.stdout and "of 203" in result.stdout
    assert snapshot(path) == before


def snapshot(path: Path) -> dict:
    """Every file's content, but the lock's."""
    return {f: f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file() and f.name != ".lock"}


def test_evaluate_from_any_directory(command: Command, finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "exp"
    shutil.copytree(finished, path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    result = command("evaluate", "--workdir", "../exp", cwd=elsewhere)
    assert result.returncode == 0 and result.stderr == ""
    report = json.loads((path / "evaluation.json").read_text())
    last = lines_of(path)[-1]
    assert report["step"] == 26 and report["split"] == "test[:203]" and report["examples"] == 203
    assert report["accuracy"] == last["accuracy"]
    assert report["cross_entropy"] == pytest.approx(last["cross_entropy"], rel=1e-5)
    assert np.sum(report["confusion_matrix"]) == 203
    assert f"{report['correct']} of 203 correct" in result.stdout
    figures = {f"{name}.png" for name in ("confusion", "mistakes", "reliability", "weights")}
    assert {entry.name for entry in (path / "figures").iterdir()} == figures
    assert max(map(len, result.stdout.splitlines()[:-1])) <= 130

    result = command("evaluate", "--workdir", path, "--split", "train[:50]", "--step", "13", "--no-figures")
    report = json.loads((path / "evaluation.json").read_text())
    assert (result.returncode, report["step"], report["examples"]) == (0, 13, 50)


def test_predictions_and_json(command: Command, finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "exp"
    shutil.copytree(finished, path)
    flags = ["--predictions", tmp_path / "p.csv", "--json", "--no-figures"]
    result = command("evaluate", "--workdir", path, *flags)
    assert (result.returncode, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    low, high = report["accuracy_interval"]
    assert low < report["accuracy"] < high and report == json.loads((path / "evaluation.json").read_text())
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    assert [row["index"] for row in rows] == [str(index) for index in range(203)]
    assert sum(row["label"] == row["prediction"] for row in rows) == report["correct"]
    probabilities = np.array([[float(row[f"probability of {digit}"]) for digit in range(10)] for row in rows])
    assert (probabilities.argmax(axis=1) == [int(row["prediction"]) for row in rows]).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    (tmp_path / "link").symlink_to(tmp_path / "p.csv")
    (tmp_path / "p.csv").write_text("old")
    flags = ["--json", "--no-figures", "--step", "best", "--predictions", tmp_path / "link"]
    result = command("evaluate", "--workdir", path, *flags)
    assert json.loads(result.stdout)["chosen_on_it"] is True  # a step that is the best on the very split
    assert (tmp_path / "link").is_symlink() and (tmp_path / "p.csv").read_text() != "old"
    result = command("evaluate", "--workdir", path, "--step", "best", "--no-figures", "--split", "test[500:600]")
    assert result.returncode == 0 and "chosen" not in result.stdout
    result = command("evaluate", "--workdir", path, "--predictions", tmp_path)
    assert result.returncode == 2 and "is a directory; give the path of a file" in result.stderr
    result = command("evaluate", "--workdir", path, "--predictions", tmp_path / "no" / "p.csv")
    assert result.returncode == 2 and "no/p.csv' is in no directory; create it" in result.stderr


def test_load_and_apply(finished: Path, dataset: datasets.Dataset) -> None:
    model, variables = mnist_flax.load(finished)
    images, labels = dataset.read("test[:203]")
    want = lines_of(finished)[-1]["accuracy"]
    for form in (images, images[..., 0], images.reshape(203, 784), images / np.float32(255)):
        logits = np.asarray(model.apply(variables, np.asarray(form)))
        assert logits.shape == (203, 10) and metrics.evaluation_report(logits, labels)["accuracy"] == want
    assert all(isinstance(kernel, np.ndarray) for kernel in variables["params"]["dense_1"].values())
    _, earlier = mnist_flax.load(str(finished), step=13)
    assert not np.array_equal(earlier["params"]["dense_1"]["kernel"], variables["params"]["dense_1"]["kernel"])
    _, best = mnist_flax.load(finished, "best")
    evals = [line for line in lines_of(finished) if line["split"] == "eval"]
    assert evals[1]["accuracy"] > evals[0]["accuracy"]  # so that best is the second
    np.testing.assert_array_equal(best["params"]["dense_1"]["kernel"], variables["params"]["dense_1"]["kernel"])


def test_settings_reach_the_run(command: Command, tmp_path: Path) -> None:
    flags = ["--widths", "8", "--batch-norm-layers", "1", "--l2-layers", "1", "2", "--schedule", "cosine",
             "--epochs", "4", "--warmup-epochs", "1", "--learning_rate", "0.01", "--keep", "1",
             "--train-split", "train[:64]", "--batch-size", "32", "--eval-split", "test[:10]"]  # fmt: skip
    result = command("train", "--workdir", tmp_path / "exp", *flags)
    assert result.returncode == 0, result.stderr
    rates = [line["learning_rate"] for line in lines_of(tmp_path / "exp") if line["split"] == "train"]
    progress = np.array([0, 1, 3, 5]) / 6  # the last update of each epoch, behind a warm-up of 2 steps
    want = 0.01 * np.array([2 / 3, *(1 + np.cos(np.pi * progress[1:])) / 2])
    np.testing.assert_allclose(rates, want, rtol=1e-5)
    _, variables = mnist_flax.load(tmp_path / "exp")
    assert variables["params"].keys() == {"dense_1", "batch_norm_1", "dense_2"}
    assert len(list((tmp_path / "exp" / "checkpoints").iterdir())) <= 2


def test_no_batch_norm_at_all(command: Command, tmp_path: Path) -> None:
    flags = ["--widths", "8", "--batch-norm-layers", "--l2-layers", "--epochs", "1", "--train-split", "train[:64]",
             "--eval-split", "test[:10]"]  # fmt: skip
    assert command("train", "--workdir", tmp_path / "exp", *flags).returncode == 0
    assert mnist_flax.load(tmp_path / "exp")[1]["batch_stats"] == {}


def test_a_setting_without_effect_is_said(command: Command, tmp_path: Path) -> None:
    result = command("train", "--workdir", tmp_path / "exp", *TINY_FLAGS, "--epochs", 1, "--max-norm", 2)
    assert result.stderr == "warning: max_norm=2.0 has no effect without max_norm_layers\n"
    config = Config(l2_layers=(), hparams=Hyperparams(l2=0.1, max_norm=2.0))
    lines = ["l2=0.1 has no effect without l2_layers", "max_norm=2.0 has no effect without max_norm_layers"]
    assert without_effect(config) == lines and without_effect(Config()) == without_effect(Config(l2_layers=())) == []
    idle = Config(
        noise_at="both", batch_norm_layers=(), precise_batch_norm=True, hparams=Hyperparams(average_decay=0.5)
    )
    assert without_effect(idle) == [
        "average_decay=0.5 has no effect without average_weights",
        "noise_at=both has no effect without noise",
        "precise_batch_norm=True has no effect without batch_norm_layers",
    ]
    [line] = without_effect(Config(hparams=Hyperparams(noise=0.1)))
    assert line == "noise=0.1 has no effect without noise_at"


def test_eight_devices_train_and_one_evaluates(command: Command, tmp_path: Path) -> None:
    flag = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    result = command("train", "--workdir", tmp_path / "exp", *TINY_FLAGS, env=flag)
    assert result.returncode == 0 and "on 8 cpu devices" in result.stdout
    result = command("evaluate", "--workdir", tmp_path / "exp", "--no-figures")
    assert result.returncode == 0 and not (tmp_path / "exp" / "figures").exists()
    report = json.loads((tmp_path / "exp" / "evaluation.json").read_text())
    assert report["accuracy"] == lines_of(tmp_path / "exp")[-1]["accuracy"]


def test_a_run_under_other_versions_says_so(command: Command, finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "exp"
    shutil.copytree(finished, path)
    config = (path / "config.json").read_text()
    jax_version = run_info.versions()["jax"]
    (path / "config.json").write_text(config.replace(f'"jax": "{jax_version}"', '"jax": "0.1.2"'))
    result = command("train", "--workdir", path, *TINY_FLAGS)
    assert result.returncode == 0
    assert f"began under other versions, so its last digits may differ: jax {jax_version} (was 0.1.2)" in result.stderr


def test_the_default_is_the_tutorial() -> None:
    config = Config()
    assert (config.widths, config.batch_norm_layers, config.l2_layers) == ((512, 512), (2,), (2,))
    assert (config.batch_size, config.epochs, config.adam_epsilon, config.schedule) == (128, 4, 1e-7, "constant")
    h = config.hparams
    assert (h.learning_rate, h.l2, h.dropout_rate, h.b1, h.b2, h.label_smoothing) == (1e-3, 1e-3, 0.2, 0.9, 0.999, 0.0)


NOBODY = 65534


@pytest.fixture
def theirs(finished: Path, dataset: datasets.Dataset, tmp_path: Path) -> Iterator[Path]:
    """A colleague's run and data, both only to be read."""
    if os.getuid() != 0:
        pytest.skip("needs root, to become somebody else")
    run, data = tmp_path / "run", tmp_path / "data"
    shutil.copytree(finished, run)
    prepared = Path(dataset.directory).parent
    shutil.copytree(prepared, data / "mnist" / "3.0.1", ignore=shutil.ignore_patterns("decoded"))
    config = json.loads((run / "config.json").read_text())
    config["data"]["data_dir"] = str(data)
    (run / "config.json").write_text(json.dumps(config))
    above = [
        path
        for path in (tmp_path, *tmp_path.parents)
        if path.stat().st_uid == 0 and path.stat().st_mode & 0o005 != 0o005
    ]
    modes = {path: path.stat().st_mode for path in above}
    for path in above:
        path.chmod(modes[path] | 0o005)
    yield tmp_path
    for path, mode in modes.items():
        path.chmod(mode)


def test_what_may_only_be_read_is_used(theirs: Path) -> None:
    home = theirs / "home"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    env |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "TMPDIR": str(home)}
    before = snapshot(theirs)

    def command(name: str, *args: object) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", f"mnist_flax.{name}", "--workdir", str(theirs / "run"), *map(str, args)]
        return subprocess.run(line, capture_output=True, text=True, env=env, user=NOBODY, group=NOBODY)

    try:
        evaluated = command("evaluate")
    except PermissionError:
        pytest.skip("somebody else may not run this Python")
    if "No module named" in evaluated.stderr:
        pytest.skip("somebody else may not read this package")
    assert (evaluated.returncode, evaluated.stderr) == (0, "")
    assert "203 correct" in evaluated.stdout and "not written: " in evaluated.stdout
    assert command("export", "--format", "html", "--out", home / "page.html").returncode == 0
    Image.new("L", (28, 28)).save(home / "blank.png")
    assert "shows nothing" in command("predict", home / "blank.png").stderr
    after = snapshot(theirs)
    assert {path: after[path] for path in before} == before
    assert {path.relative_to(theirs).parts[0] for path in after.keys() - before.keys()} == {"home"}


def test_a_terminal_that_knows_no_colours_nor_letters(finished: Path, command: Command, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "exp")
    config = tmp_path / "exp" / "config.json"
    config.write_text(config.read_text().replace('"7"', '"sieben \u2014 \u00fc"'))
    result = command("evaluate", "--workdir", tmp_path / "exp", env={"PYTHONIOENCODING": "ascii", "LC_ALL": "C"})
    assert result.returncode == 2 and "class_names differs" in result.stderr
    result = command("evaluate", "--workdir", tmp_path / "\u00fc", env={"PYTHONIOENCODING": "ascii", "LC_ALL": "C"})
    assert result.returncode == 2 and "is not a run" in result.stderr and result.stderr.count("\n") == 1
    line = [sys.executable, "-m", "mnist_flax.train", "--help"]
    for no_color in ("", "1"):
        leader, follower = pty.openpty()
        env = os.environ | {"TERM": "xterm", "NO_COLOR": no_color}
        process = subprocess.Popen(line, stdout=follower, stderr=follower, env=env)
        os.close(follower)
        seen = read_all(leader)
        assert process.wait() == 0 and b"--workdir" in seen and (b"\x1b[" in seen) == (no_color == "")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_may_be_closed(closed: str, tmp_path: Path) -> None:
    """What is opened next must not take their place: what is printed would land in it."""
    line = f"{sys.executable} -m mnist_flax.train --workdir exp {' '.join(map(shlex.quote, TINY_FLAGS))} {closed}"
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    result = subprocess.run(line, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert (result.returncode, result.stderr) == (0, "")
    assert ("Saved in" in result.stdout) == (" >" not in f" {closed}")
    assert len((tmp_path / "exp" / "metrics.jsonl").read_text().splitlines()) == 4
    line = f"{sys.executable} -m mnist_flax.evaluate --workdir exp --no-figures {closed}"
    assert subprocess.run(line, shell=True, cwd=tmp_path, env=env, capture_output=True).returncode == 0


def test_an_error_that_cannot_be_printed_has_its_exit_code(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "mnist_flax.evaluate", "--workdir", str(tmp_path)]
    with open("/dev/full", "w") as full:
        assert subprocess.run(line, stderr=full).returncode == 2

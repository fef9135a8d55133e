"""What the code of commit 978c079 left on disk is still opened, and goes on to where that code itself took it.

`older_runs.tar.xz` holds directories that it made, all with `--no-figures --no-tensorboard`:

    finished   train with FINISHED, see below
    bfloat16   train --precision bfloat16 --widths 4 8 --batch-norm-layers --batch-size 32 --epochs 1
               --train-split train[:2000] --eval-split test[:200]
    stopped    train with STOPPED: killed with -9 after step 40, begun again, and stopped by SIGTERM at step 130,
               inside the third epoch of 50 steps and between two of its own checkpoints
    grown      sweep of grown.py to its end with GENERATIONS = 1, and again with 2
    searched   sweep of searched.py to its end with TRIALS = 4
    half_done  sweep of half_done.py with --population 2: killed with -9 in its first population, begun again, and
               stopped by SIGTERM later: two members are done, two are part way, the two of the first population wait

Then every `data_dir` was made /data, which does not exist. Commits, locks, and the names of the host and of its
processes were blanked, and so were the paths in orbax's `commit_success.txt`, with its sum in SHA256SUMS.

`expected.json` next to them is what the same commit made of each when it went on by the commands below, and on what
machine. A machine of the same kind must get every digit of it but times. Any other may round otherwise. These runs have
few steps and most a large `adam_epsilon`, so that training hardly amplifies that: without AVX no loss differed by 1e-5.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command

import mnist_flax

ROOT = Path(__file__).parents[2]
STOPPED_AT, TOTAL = 130, 200
STOPPED = ["--widths", "6", "8", "--batch-norm-layers", "1", "--l2-layers", "1", "3", "--max-norm-layers", "1",
           "--max-norm", "0.5", "--l2", "1e-4", "--learning-rate", "2e-3", "--dropout-rate", "0.1",
           "--label-smoothing", "0.1", "--seed", "7", "--adam-epsilon", "1e-5", "--schedule", "cosine",
           "--warmup-epochs", "0.5", "--batch-size", "8", "--epochs", "4", "--train-split", "train[:396]",
           "--eval-split", "train[400:600]", "--eval-batch-size", "64", "--steps-per-call", "5",
           "--checkpoint-every", "20"]  # fmt: skip
FINISHED = ["--widths", "6", "8", "--epochs", "2", "--train-split", "train[:5000]", "--eval-split", "test[:1000]"]
QUIET = ["--no-figures", "--no-tensorboard"]
IMAGES = (np.arange(3 * 28 * 28) ** 2 % 251).astype(np.uint8).reshape(3, 28, 28)
NEVER_SAME = {"seconds", "commit", "versions"}
ADDED_SINCE = {"trial", "workdir", "accuracy_interval"}  # a result names its trial, and a directory if it was kept
REORDERED = {"expected_calibration_error"}
TOLERANCE = 1e-4  # of a number on any other machine
TOLERANCES = {"accuracy": 0.02, "value": 0.02, "learning_rate": 1e-8}  # of these: a few examples of 200; nearly nothing


def this_machine() -> dict[str, Any]:
    """What must be the same for every digit to be the same."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    processor = "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    packages = ("jax", "jaxlib", "numpy", "flax", "optax", "optuna")
    return {
        "processor": hashlib.sha256(processor.encode()).hexdigest(),
        "cores": cores,  # a sweep's devices
        **{package: importlib.metadata.version(package) for package in packages},
    }


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of them, unpacked; a test that changes one takes a copy."""
    path = tmp_path_factory.mktemp("older")
    with tarfile.open(Path(__file__).with_name("older_runs.tar.xz")) as archive:
        archive.extractall(path, filter="data")
    return path


@pytest.fixture(scope="module")
def expected(older: Path) -> dict[str, Any]:
    return json.loads((older / "expected.json").read_text())


def copy(older: Path, name: str, to: Path) -> Path:
    """A copy of a directory for one test, with its experiment file next to it if it has one."""
    shutil.copytree(older / name, to / name)
    if (older / f"{name}.py").exists():
        shutil.copy(older / f"{name}.py", to)
    return to / name


def succeed(command: Command, name: str, *args: object) -> str:
    """Run a command of this checkout; what it says."""
    result = command(name, *args, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return result.stdout


def evaluate(command: Command, path: Path, *flags: str) -> dict[str, Any]:
    succeed(command, "evaluate", "--workdir", path, "--no-figures", *flags)
    return json.loads((path / "evaluation.json").read_text())


def sweep(command: Command, path: Path, *flags: str) -> list[dict[str, Any]]:
    """Go on with a sweep to its end; its rows."""
    succeed(command, "sweep", path.with_suffix(".py"), "--workdir", path, *QUIET, *flags)
    return lines_of(path / "results.jsonl")


def logits(path: Path) -> list[list[float]]:
    model, variables = mnist_flax.load(path)
    return np.asarray(model.apply(variables, IMAGES), np.float64).tolist()


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def lasting(tree: Any) -> Any:
    """Without what no two runs have in common, and without the digits of a sum that is now made in another order."""
    if isinstance(tree, dict):
        kept = {name: lasting(value) for name, value in tree.items() if name not in NEVER_SAME | ADDED_SINCE}
        return kept | {name: round(kept[name], 12) for name in REORDERED & kept.keys()}
    return [lasting(value) for value in tree] if isinstance(tree, list) else tree


def assert_agree(got: Any, expected: dict[str, Any], *names: str, tolerance: float = TOLERANCE) -> None:
    """`got` is what `expected` has under `names`: to the last digit on a machine of its kind, closely on any other."""
    want = expected
    for name in names:
        want = want[name]
    if expected["machine"] == this_machine():
        assert lasting(got) == lasting(want)
    else:
        _assert_close(lasting(got), lasting(want), tolerance, "/".join(names))


def _assert_close(got: Any, want: Any, tolerance: float, where: str) -> None:
    if isinstance(want, dict):
        assert got.keys() == want.keys(), where
        for name, value in want.items():
            _assert_close(got[name], value, TOLERANCES.get(name, tolerance), f"{where}/{name}")
    elif isinstance(want, list):
        assert len(got) == len(want), where
        for index, value in enumerate(want):
            _assert_close(got[index], value, tolerance, f"{where}/{index}")
    else:
        assert got == (pytest.approx(want, rel=0, abs=tolerance) if isinstance(want, float) else want), where


def by_member(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Everything about each member but its place among the others, by what it is."""
    place = dict.fromkeys(ADDED_SINCE | {"member"})
    return {json.dumps([row["stage"], row["overrides"]]): row | place for row in rows}


def test_a_stopped_run_is_evaluated_exported_and_resumed(
    older: Path, expected: dict[str, Any], command: Command, tmp_path: Path
) -> None:
    path = copy(older, "stopped", tmp_path)
    evaluation = evaluate(command, path, "--step", "latest")
    assert evaluation["step"] == STOPPED_AT
    assert_agree(evaluation, expected, "stopped", "evaluation")

    file = tmp_path / "network.stablehlo"
    succeed(command, "export", "--workdir", path, "--format", "stablehlo", "--out", file)  # compares logits itself
    about = json.loads(file.read_bytes().splitlines()[-1])
    assert (about["step"], about["config"]["schedule"]) == (STOPPED_AT, "cosine")
    assert about["accuracy"] == pytest.approx(evaluation["accuracy"])

    before = lines_of(path / "metrics.jsonl")
    assert f"resumed at step {STOPPED_AT}" in succeed(command, "train", "--workdir", path, *STOPPED, *QUIET)
    after = lines_of(path / "metrics.jsonl")
    assert after[: len(before)] == before and after[-1]["step"] == TOTAL
    assert_agree(after, expected, "stopped", "metrics")


@pytest.mark.skipif(not importlib.util.find_spec("py_mini_racer"), reason="html needs the export extra")
def test_a_stopped_run_becomes_a_page(older: Path, command: Command, tmp_path: Path) -> None:
    succeed(command, "export", "--workdir", older / "stopped", "--format", "html", "--out", tmp_path / "page.html")
    assert "<canvas" in (tmp_path / "page.html").read_text()


def test_a_finished_run_is_evaluated_and_has_nothing_to_do(
    older: Path, expected: dict[str, Any], command: Command, tmp_path: Path
) -> None:
    path = copy(older, "finished", tmp_path)
    report = evaluate(command, path, "--step", "best")
    assert report.pop("chosen_on_it") is True  # older versions did not say so
    assert_agree(report, expected, "finished", "evaluation")
    assert "is finished: nothing to do" in succeed(command, "train", "--workdir", path, *FINISHED, *QUIET)
    assert (path / "metrics.jsonl").read_bytes() == (older / "finished" / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("name", ["finished", "bfloat16", "stopped", "grown/members/0001", "grown/final/0003"])
def test_networks_are_loaded_in_python(older: Path, expected: dict[str, Any], name: str) -> None:
    tolerance = 0.1 if name == "bfloat16" else TOLERANCE
    assert_agree(logits(older / name), expected, "logits", name, tolerance=tolerance)


def test_a_finished_sweep_grows(older: Path, expected: dict[str, Any], command: Command, tmp_path: Path) -> None:
    path = copy(older, "grown", tmp_path)
    before = lines_of(path / "results.jsonl")
    study = path.with_suffix(".py")
    study.write_text(study.read_text().replace("GENERATIONS = 2", "GENERATIONS = 3"))
    rows = sweep(command, path)
    assert len(rows) == len(before) + 2 + 2  # two members more, another choice, and its two fresh seeds
    assert by_member(before).items() <= by_member(rows).items()  # times and all: nothing is trained again
    assert_agree(rows, expected, "grown")
    assert np.isfinite(logits(path / rows[-1]["workdir"])).all()


def test_a_finished_search_goes_on(older: Path, expected: dict[str, Any], command: Command, tmp_path: Path) -> None:
    path = copy(older, "searched", tmp_path)
    before = lines_of(path / "results.jsonl")
    rows = sweep(command, path, "--trials", "6")
    assert len(rows) == len(before) + 2 + 1  # another choice, and its fresh seed
    assert by_member(before).items() <= by_member(rows).items()
    assert_agree(rows, expected, "searched")


def test_a_half_done_sweep_goes_on(older: Path, expected: dict[str, Any], command: Command, tmp_path: Path) -> None:
    path = copy(older, "half_done", tmp_path)
    before = lines_of(path / "results.jsonl")
    part_way = [lines_of(path / "members" / name / "metrics.jsonl") for name in ("0004", "0005")]
    rows = sweep(command, path)
    assert (len(before), len(rows)) == (2, 6 + 2)
    assert by_member(before).items() <= by_member(rows).items()
    histories = [row["history"] for row in rows]
    assert all(lines in [history[: len(lines)] for history in histories] for lines in part_way)
    assert_agree(rows, expected, "half_done")

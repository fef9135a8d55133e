"""The drivers compile for TPUs, by their real compiler; its report on four chips."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBTPU = os.environ.get("MNIST_FLAX_LIBTPU", "")
pytestmark = pytest.mark.skipif(not LIBTPU, reason="MNIST_FLAX_LIBTPU names no directory with libtpu; see .ci/run")
WEIGHTS = 784 * 512 + 512 + 512 * 512 + 512 + 2 * 512 + 512 * 10 + 10  # of the default network, BatchNorm's included
NARROW = {"widths": [64, 64], "precision": "bfloat16"}  # quick to compile
CASES = [
    {"driver": "train"},  # the default run
    {"driver": "eval", "config": NARROW},
    {"driver": "train_members", "config": NARROW, "members": 8},
    {"driver": "eval_members", "config": NARROW, "members": 8},
]
HBM = 16 * 2**30  # of a chip of v5e


@pytest.fixture(scope="module")
def reports() -> dict[str, dict]:
    """The compiler's report on each driver, by its name; one process, since libtpu must be there before JAX starts."""
    words = [json.dumps({"topology": "v5e:2x2"} | case) for case in CASES]
    line = [sys.executable, "experiments/benchmarks/compile_program.py", *words]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = {row["driver"]: row for row in map(json.loads, result.stdout.splitlines())}
    assert not [row for row in found.values() if "failed" in row]
    return found


@pytest.mark.parametrize("driver", [case["driver"] for case in CASES])
def test_a_driver_fits_and_never_leaves_the_device(driver: str, reports: dict[str, dict]) -> None:
    row = reports[driver]
    assert 0 < row["arguments"] + row["outputs"] - row["aliased"] + row["temporaries"] + row["code"] < HBM
    assert not row["float64"] and not row["host_calls"]


@pytest.mark.parametrize("driver", ["train", "train_members"])
def test_training_donates_its_whole_state(driver: str, reports: dict[str, dict]) -> None:
    row = reports[driver]
    assert row["donated"] == [*range(row["state_leaves"])]
    assert row["outputs"] - row["aliased"] < 10_000  # the metrics


def test_a_step_of_data_parallel_training_reduces_four_times(reports: dict[str, dict]) -> None:
    """BatchNorm's sums forward, with the count of examples; the correct answers; BatchNorm's sums backward; the
    gradients, with the loss. One of the backward sums is a gradient too."""
    batch_norm, scalars = 4 * 512 - 512, 3
    assert reports["train"]["collectives_each_step"] == {"all-reduce": [4, 4 * (WEIGHTS + batch_norm + scalars)]}
    assert reports["train"]["collectives_once"] == {"all-reduce": [1, 4 * 67]}  # the examples of each step


def test_evaluation_reduces_three_numbers_a_batch(reports: dict[str, dict]) -> None:
    """The loss and the correct answers in each; the examples of all batches at once."""
    row = reports["eval"]
    assert row["collectives_each_step"] == {"all-reduce": [2, 2 * 4]}
    assert row["collectives_once"] == {"all-reduce": [1, 10 * 4]}


@pytest.mark.parametrize("driver", ["train_members", "eval_members"])
def test_members_exchange_nothing(driver: str, reports: dict[str, dict]) -> None:
    assert reports[driver]["collectives_each_step"] == reports[driver]["collectives_once"] == {}

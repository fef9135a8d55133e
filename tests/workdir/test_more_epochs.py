"""A finished run goes on with more epochs, and ends where a straight run of as many epochs ends."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TINY_FLAGS, Command, assert_trees_equal

from mnist_flax.workdir import checkpoint

STEPS = 13  # of an epoch


def kill_after(step: int, path: Path, *flags: str) -> None:
    """Start training, and kill it when it has saved a checkpoint of `step` or later."""
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    line = [sys.executable, "-m", "mnist_flax.train", "--workdir", str(path), *TINY_FLAGS, *flags]
    process = subprocess.Popen(line, env=env, stdout=subprocess.DEVNULL)
    while max(checkpoint.steps(path / "checkpoints"), default=0) < step:
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.wait()


def result_of(path: Path) -> tuple[object, list[dict]]:
    """The final state, and the metrics without their timings."""
    step, state, _ = checkpoint.restore(path / "checkpoints", "latest", warn=pytest.fail)
    assert step == 8 * STEPS
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return state, [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def test_4_then_8_epochs_equal_8_at_once_through_kills(command: Command, tmp_path: Path) -> None:
    often = ["--checkpoint-every", "5"]
    assert command("train", "--workdir", tmp_path / "straight", *TINY_FLAGS, *often, "--epochs", 8).returncode == 0
    path = tmp_path / "grown"
    kill_after(2 * STEPS, path, *often, "--epochs", "4")
    assert command("train", "--workdir", path, *TINY_FLAGS, *often, "--epochs", 4).returncode == 0
    kill_after(4 * STEPS + 5, path, *often, "--epochs", "8")
    assert json.loads((path / "config.json").read_text())["config"]["epochs"] == 8
    result = command("train", "--workdir", path, *TINY_FLAGS, *often, "--epochs", 8)
    assert result.returncode == 0, result.stderr
    (straight, lines), (grown, others) = result_of(tmp_path / "straight"), result_of(path)
    assert_trees_equal(straight, grown)
    assert lines == others


def test_epochs_grow_only_where_the_learning_rate_does_not_depend_on_them(
    finished: Path, command: Command, tmp_path: Path
) -> None:
    fewer = command("train", "--workdir", finished, *TINY_FLAGS, "--epochs", 1)
    assert fewer.returncode == 2 and "epochs=1 (there 2); give the same settings or another" in fewer.stderr
    flags = [*TINY_FLAGS, "--schedule", "cosine"]
    assert command("train", "--workdir", tmp_path / "run", *flags).returncode == 0
    before = (tmp_path / "run" / "config.json").read_bytes()
    more = command("train", "--workdir", tmp_path / "run", *flags, "--epochs", 3)
    assert more.returncode == 2
    assert "epochs=3 (there 2); with schedule='cosine' its learning rate depends on the number of epochs" in more.stderr
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_a_config_with_fewer_epochs_than_its_checkpoint_is_refused(
    finished: Path, command: Command, tmp_path: Path
) -> None:
    result = command("train", "--workdir", tmp_path / "run", *TINY_FLAGS)
    assert result.returncode == 0
    path = tmp_path / "run" / "config.json"
    path.write_text(path.read_text().replace('"epochs": 2', '"epochs": 1'))
    refused = command("evaluate", "--workdir", tmp_path / "run")
    assert refused.returncode == 2 and "whose config.json was another: epochs differs" in refused.stderr

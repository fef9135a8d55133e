"""Processes that train together are one run: they end where one ends, and start from each other's checkpoints."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import PATIENCE, TINY_FLAGS, Command

from mnist_flax.data import decode
from mnist_flax.data.datasets import Dataset
from mnist_flax.process import files
from mnist_flax.workdir import checkpoint

FLAGS = [*TINY_FLAGS, "--epochs", "4", "--checkpoint-every", "5"]
ENV = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
# A process that needs three seconds to look at what all have sent.
LATE = """
import runpy, time
from jax.experimental import multihost_utils
gather = multihost_utils.process_allgather
multihost_utils.process_allgather = lambda value: (gather(value), time.sleep(3 * value.ndim))[0]
runpy.run_module("mnist_flax.train", run_name="__main__", alter_sys=True)
"""


def start(path: Path, of_the_second: Sequence[str] = (), late: bool = False) -> list[subprocess.Popen[str]]:
    """Two processes on one workdir; the second one may have more flags, and be late."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    flags = ["--workdir", str(path), *FLAGS, "--distributed"]
    flags += ["--coordinator", coordinator, "--num-processes", "2", "--process-id"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    train = [sys.executable, "-m", "mnist_flax.train"]
    lines = [*train, *flags, "0"], [*([sys.executable, "-c", LATE] if late else train), *flags, "1", *of_the_second]
    return [subprocess.Popen(each, **pipes, text=True, env=ENV) for each in lines]


def finish(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Of each: exit code, stdout, and of stderr our own lines."""
    outputs = [process.communicate(timeout=PATIENCE) for process in processes]
    ours = ["\n".join(re.findall(r"^(?:error|warning|stopped).*", err, re.M)) for _, err in outputs]
    return [(p.returncode, out, err) for p, (out, _), err in zip(processes, outputs, ours, strict=True)]


def wait_for_step(path: Path, process: subprocess.Popen[str], step: int) -> None:
    while max(checkpoint.steps(path / "checkpoints"), default=0) < step:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def metrics_of(path: Path) -> np.ndarray:
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [13, 13, 26, 26, 39, 39, 52, 52]
    return np.array([[line["loss"], line["cross_entropy"], line["accuracy"], line["examples"]] for line in lines])


@pytest.fixture(scope="module")
def lone(command: Command, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    path = tmp_path_factory.mktemp("lone") / "exp"
    assert command("train", "--workdir", path, *FLAGS).returncode == 0
    return metrics_of(path)


def assert_same(path: Path, lone: np.ndarray) -> None:
    """To float32 rounding, which training amplifies; a count may be off by an example."""
    got = metrics_of(path)
    np.testing.assert_allclose(got[:, :2], lone[:, :2], rtol=2e-3)
    np.testing.assert_allclose(got[:, 2:], lone[:, 2:], atol=0.011)


def test_two_processes_are_one_run_and_help_a_third_along(lone: np.ndarray, command: Command, tmp_path: Path) -> None:
    path = tmp_path / "exp"
    both = start(path)
    wait_for_step(path, both[0], 15)
    both[1].kill()
    (code, stdout, stderr), _ = finish(both)
    assert code == 1
    assert stderr.startswith("error: ") and "another process of this run has ended" in stderr and "\n" not in stderr
    assert "on 2 cpu devices" in stdout
    alone = command("train", "--workdir", path, *FLAGS)  # a checkpoint of two, in one
    assert alone.returncode == 0 and "on 1 cpu device; resumed at step" in alone.stdout
    assert_same(path, lone)


def test_the_leader_may_die_too(lone: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "exp"
    alone = subprocess.Popen([sys.executable, "-m", "mnist_flax.train", "--workdir", str(path), *FLAGS], env=ENV)
    wait_for_step(path, alone, 10)
    alone.kill()
    alone.wait()
    both = start(path)  # a checkpoint of one, in two
    wait_for_step(path, both[0], 30)
    both[0].kill()
    _, (code, stdout, stderr) = finish(both)
    assert code == 1 and stdout.replace("[Gloo]", "").count("\n") <= 1  # only the leader speaks
    assert stderr.startswith("error: ") and "another process of this run has ended" in stderr
    codes = [(code, stderr) for code, _, stderr in finish(start(path))]
    assert codes == [(0, "")] * 2
    assert_same(path, lone)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--distributed"], "distributed=True finds no Slurm, Kubernetes, Cloud TPU or Open MPI; give --coordinator"),
        (["--num-processes", "2"], "num_processes=2, process_id=None: give all three together with --distributed"),
        (
            ["--distributed", "--coordinator", "localhost:1", "--num-processes", "2", "--process-id", "2"],
            "process_id=2 is out of range; give 0 to 1",
        ),
    ],
)
def test_what_is_missing_is_named(flags: list[str], message: str, command: Command, tmp_path: Path) -> None:
    result = command("train", "--workdir", tmp_path / "exp", *TINY_FLAGS, *flags)
    assert result.returncode == 2 and not (tmp_path / "exp").exists()
    assert result.stderr.count("\n") == 1 and message in result.stderr


def other_data(dataset: Dataset, directory: Path) -> Path:
    """A data directory whose MNIST has one other byte, and the checksum of that."""
    decoded = directory / "mnist" / "3.0.1" / "decoded"
    shutil.copytree(dataset.directory, decoded)
    with open(decoded / "train-images.npy", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x07")
    spec = json.loads((decoded / "spec.json").read_text())
    spec["sha256"]["train-images.npy"] = files.sha256(decoded / "train-images.npy")
    spec["spec_sha256"] = decode.sum_of(spec)
    (decoded / "spec.json").write_text(json.dumps(spec))
    return directory


@pytest.mark.parametrize("what", ["seed", "eval_split", "sha256"])
def test_processes_that_were_started_differently_are_refused(what: str, tmp_path: Path, dataset: Dataset) -> None:
    flags = {"seed": ["--seed", "1"], "eval_split": ["--eval-split", "test[:99]"]}
    flags["sha256"] = ["--data-dir", str(other_data(dataset, tmp_path / "data") if what == "sha256" else "")]
    for code, stdout, stderr in finish(start(tmp_path / "exp", flags[what], late=what == "seed")):
        assert code == 2 and "epoch" not in stdout
        assert re.match(rf"error: {what} is .* in process 0, but .* in process 1; start every process", stderr)
        assert stderr.count("\n") == 0
    assert not (tmp_path / "exp").exists()


def test_what_one_process_refuses_is_said_by_all(tmp_path: Path) -> None:
    path = tmp_path / "exp"
    both = finish(start(path, ["--data-dir", "/proc/missing"]))
    missing = [f"error: {who}data_dir='/proc/missing' cannot be used " for who in ("process 1: ", "")]
    assert [(code, text.split("(")[0]) for code, _, text in both] == [(2, text) for text in missing]
    path.mkdir()
    with files.lock(path / ".lock", wait=False):
        both = finish(start(path))
    used = [f"error: {who}workdir='{path}' is in use by another process; " for who in ("", "process 0: ")]
    assert [(code, text.split("wait")[0]) for code, _, text in both] == [(2, text) for text in used]

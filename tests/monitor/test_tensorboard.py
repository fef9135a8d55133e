"""TensorBoard itself serves what a run wrote, also one that was killed and resumed; and training does without it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import PATIENCE, TINY_FLAGS, Command
from PIL import Image

import mnist_flax
from mnist_flax.monitor.tensorboard import write_members
from mnist_flax.steps import GRADIENT_NORM_EVERY
from mnist_flax.workdir import checkpoint

EPOCHS, STEPS = 6, 6 * 13
FLAGS = [*TINY_FLAGS, "--epochs", str(EPOCHS), "--checkpoint-every", "5", "--figures", "--tensorboard"]


class Board:
    """A TensorBoard server, asked as its page asks it."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, body: dict | None = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/data/{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read()

    def json(self, path: str, body: dict | None = None) -> Any:
        return json.loads(self.get(path, body))

    def scalars(self, run: str, tag: str) -> tuple[list[int], list[float]]:
        points = self.json(f"plugin/scalars/scalars?run={run}&tag={tag}")  # [wall time, step, value]
        return [step for _, step, _ in points], [value for _, _, value in points]


def lines_of(path: Path, split: str) -> list[dict]:
    lines = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["split"] == split]


@pytest.fixture(scope="module")
def runs(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that went straight, the same killed in the middle and resumed, and the members of a sweep."""
    home = tmp_path_factory.mktemp("runs")
    line = [sys.executable, "-m", "mnist_flax.train", "--workdir", str(home / "killed"), *FLAGS]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    while max(checkpoint.steps(home / "killed" / "checkpoints"), default=0) < 33:
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.kill()
    process.communicate(timeout=PATIENCE)  # returns when the last of its processes has ended, the writer process too
    for name in ("killed", "straight"):
        result = command("train", "--workdir", home / name, *FLAGS)
        assert (result.returncode, result.stderr) == (0, "")
    history = [json.loads(line) for line in (home / "straight" / "metrics.jsonl").read_text().splitlines()]
    row = {"stage": "selection", "method": "", "history": history}
    rows = [
        row | {"member": n, "trial": n, "overrides": {"l2": 0.1 * n, "batch_norm_layers": [1] * n}} for n in range(2)
    ]
    write_members(home / "sweep" / "tensorboard", rows)
    write_members(home / "sweep" / "tensorboard", rows)  # finds all of it there
    return home


@pytest.fixture(scope="module")
def board(runs: Path) -> Iterator[Board]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    log = runs / "server.log"
    line = [sys.executable, "-m", "tensorboard.main", "--logdir", str(runs), "--port", str(port)]
    with open(log, "w") as file, subprocess.Popen(line, stdout=file, stderr=file) as server:
        board, deadline = Board(f"http://localhost:{port}"), time.monotonic() + PATIENCE
        while True:
            try:
                steps, _ = board.scalars("killed/tensorboard/eval", "accuracy")
                if len(board.json("runs")) == 8 and steps[-1:] == [STEPS]:
                    break
            except (OSError, ValueError):
                pass
            assert time.monotonic() < deadline and server.poll() is None, log.read_text()
            time.sleep(0.1)
        yield board
        server.send_signal(signal.SIGTERM)


def test_evaluation_is_what_the_metrics_say(board: Board, runs: Path) -> None:
    lines = lines_of(runs / "straight", "eval")
    for tag in ("loss", "cross_entropy", "l2_penalty", "accuracy"):
        steps, values = board.scalars("straight/tensorboard/eval", tag)
        assert steps == [13 * epoch for epoch in range(1, EPOCHS + 1)]
        np.testing.assert_allclose(values, [line[tag] for line in lines], rtol=1e-6)


def test_training_is_there_step_by_step(board: Board, runs: Path) -> None:
    sizes = np.tile([16] * 12 + [8], EPOCHS)
    for tag in ("loss", "cross_entropy", "l2_penalty", "accuracy"):
        steps, values = board.scalars("straight/tensorboard/train", tag)
        assert steps == list(range(1, STEPS + 1))
        means = (np.multiply(values, sizes).reshape(EPOCHS, 13)).sum(axis=1) / 200
        np.testing.assert_allclose(means, [line[tag] for line in lines_of(runs / "straight", "train")], rtol=1e-5)
    assert set(board.scalars("straight/tensorboard/train", "learning_rate")[1]) == {np.float32(1e-3)}
    steps, norms = board.scalars("straight/tensorboard/train", "gradient_norm")
    assert steps == list(range(1, STEPS + 1, GRADIENT_NORM_EVERY)) and min(norms) > 0


def test_a_killed_and_resumed_run_shows_every_step_once(board: Board, runs: Path) -> None:
    assert len(list((runs / "killed" / "tensorboard" / "train").iterdir())) == 2
    for split, tags in board.json("plugin/scalars/tags").items():
        if split.startswith("killed"):
            assert tags
            for tag in tags:
                assert board.scalars(split, tag) == board.scalars(split.replace("killed", "straight"), tag)


def test_parameters(board: Board, runs: Path) -> None:
    _, variables = mnist_flax.load(runs / "straight")
    for layer, leaves in variables["params"].items():
        for name, leaf in leaves.items():
            tag = f"{layer}/{name}"
            histograms = board.json(f"plugin/histograms/histograms?run=straight/tensorboard/eval&tag={tag}")
            assert [step for _, step, _ in histograms] == [13 * epoch for epoch in range(1, EPOCHS + 1)]
            low, high, count = np.array(histograms[-1][2]).T
            assert sum(count) == pytest.approx(leaf.size)
            np.testing.assert_allclose([low[count > 0][0], high[count > 0][-1]], [leaf.min(), leaf.max()], rtol=0.1)
            steps, norms = board.scalars("straight/tensorboard/eval", f"norm/{tag}")
            assert len(steps) == EPOCHS and norms[-1] == pytest.approx(np.sqrt((leaf.astype(float) ** 2).sum()))


def test_images(board: Board) -> None:
    for tag in ("first_layer", "mistakes"):
        entries = board.json(f"plugin/images/images?run=straight/tensorboard/eval&tag={tag}&sample=0")
        assert entries and entries[-1]["step"] == STEPS
        content = board.get(f"plugin/images/individualImage?{entries[-1]['query']}")
        assert content.startswith(b"\x89PNG")


def test_graph_text_and_hyperparameters(board: Board) -> None:
    graph = board.get("plugin/graphs/graph?run=straight/tensorboard/eval&conceptual=false").decode()
    for name in ("images", "dense_1/kernel", "dense_1/dot_general", "batch_norm_2/rsqrt", "relu", "dropout_2/_where"):
        assert f'name: "{name}"' in graph
    assert 'name: "logits"\n  op: "Output"\n  input: "dense_3/add"' in graph
    text = board.json("plugin/text/text?run=straight/tensorboard/eval&tag=config/text_summary")
    assert "learning_rate" in text[0]["text"]
    columns = [{"metric": {"tag": tag}} for tag in ("loss", "accuracy")]
    wanted = {"allowedStatuses": ["STATUS_SUCCESS", "STATUS_UNKNOWN"], "colParams": columns, "sliceSize": 10}
    groups = board.json("plugin/hparams/session_groups", wanted)["sessionGroups"]
    by_name = {session["name"]: group for group in groups for session in group["sessions"]}
    assert by_name["sweep/tensorboard/selection-trial-0001/eval"]["hparams"]["l2"] == 0.1
    straight = by_name["straight/tensorboard/eval"]
    assert straight["hparams"]["widths"] == "[16, 16]" and straight["sessions"][0]["status"] == "STATUS_SUCCESS"
    scores = {each["name"]["tag"]: each["value"] for each in straight["metricValues"]}
    assert scores["accuracy"] == pytest.approx(board.scalars("straight/tensorboard/eval", "accuracy")[1][-1])


def test_figures(runs: Path) -> None:
    for name in ("straight", "killed"):
        assert sorted(path.name for path in (runs / name / "figures").iterdir()) == ["curves.png", "digits.png"]
        for path in (runs / name / "figures").iterdir():
            with Image.open(path) as picture:
                assert picture.width > 400


def test_training_goes_on_without_a_place_to_write(command: Command, tmp_path: Path, finished: Path) -> None:
    path = tmp_path / "exp"
    shutil.copytree(finished, path)
    shutil.rmtree(path / "checkpoints" / "26")
    (path / "tensorboard").touch()
    result = command("train", "--workdir", path, *TINY_FLAGS, "--tensorboard")
    assert result.returncode == 0 and "resumed at step 13" in result.stdout and not (path / "figures").exists()
    assert result.stderr.count("\n") == 1 and "warning: figures and tensorboard end here (" in result.stderr
    assert checkpoint.steps(path / "checkpoints") == [13, 26]

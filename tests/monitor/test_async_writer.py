"""Training never waits long for the process that writes figures and TensorBoard files."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from mnist_flax.config import Config
from mnist_flax.data.datasets import Dataset
from mnist_flax.monitor import async_writer
from mnist_flax.monitor.async_writer import AsyncWriter, RunStarted, StepScalars

BIG = StepScalars(100_000, {"loss": np.zeros(100_000)})  # more than a pipe holds


@pytest.mark.parametrize("stopped", ["while sending", "at the end"])
def test_a_process_that_does_not_answer_is_given_up(
    stopped: str, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(async_writer, "_PATIENCE", 0.5)
    with AsyncWriter(figures=False, tensorboard=True) as writer:
        process = writer._process
        assert process
        os.kill(process.pid, signal.SIGSTOP)
        writer.send(RunStarted(tmp_path, Config(), dataset, [], 0, []))
        if stopped == "while sending":
            for _ in range(3):
                writer.send(BIG)
                writer.flush()
    assert process.poll() == -signal.SIGKILL
    said = capsys.readouterr().err
    assert said.count("warning: ") == 1 and "does not answer" in said and "training goes on" in said

"""One process of a sweep: what it claims, trains, records, keeps and shows."""

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mnist_flax.config import Config
from mnist_flax.data import datasets
from mnist_flax.sweep.experiment import override
from mnist_flax.sweep.stages import Stage
from mnist_flax.sweep.storage import open_journal
from mnist_flax.sweep.trial_queue import TrialQueue
from mnist_flax.sweep.worker import Worker
from mnist_flax.workdir import checkpoint

BASE = Config(widths=(8,), batch_norm_layers=(), l2_layers=(), batch_size=50, epochs=1,
              train_split="train[:100]", eval_split="test[:50]")  # fmt: skip


def test_members_are_trained_recorded_and_kept(tmp_path: Path, dataset: datasets.Dataset) -> None:
    """Four members, three of them at once, the best two to be kept; one diverges."""
    rates = (1e-2, 1e30, 1e-3, 1e-9)
    planned: dict[str, dict[str, Any]] = {
        f"{rate}": {"overrides": {"learning_rate": rate, "seed": seed}} for seed, rate in enumerate(rates)
    }
    with TrialQueue(open_journal(tmp_path), "selection") as queue:
        config = functools.partial(override, BASE)
        stage = Stage("selection", cast(Any, None), queue, tmp_path / "members", planned, config, keeps=2)
        shown, written = [], []
        progress: Any = SimpleNamespace(
            begin=lambda stage: shown.append(("begin", stage.left())),
            update=lambda event, members: shown.append((event.step, len(members))),
        )
        signals: Any = SimpleNamespace(received=None)
        worker = Worker(stage, dataset, tmp_path, lambda _: 2, progress, signals)
        worker.work(3, lambda: written.append(stage.left()))
        assert shown == [("begin", 4), (2, 2), ("begin", 2), (2, 1), ("begin", 1), (2, 1)]
        assert written == [1, 0] and stage.left() == 0
        done = stage.finished()
        assert [queue.attribute(trial, "diverged_at") for trial in done] == [None, 2, None, None]
        assert [queue.objective(trial) is None for trial in done] == [False, True, False, False]
        for trial in done:
            history = queue.attribute(trial, "history")
            scores = [line["accuracy"] for line in history if line["split"] == "eval"]
            assert queue.objective(trial) == (scores[-1] if scores else None)
            assert queue.attribute(trial, "seconds") == pytest.approx(
                sum(line["seconds"] for line in history), abs=1e-3
            )
            assert queue.attribute(trial, "workdir") == f"members/{trial.number:04d}"
        kept = {stage.member_dir(trial) for trial in stage.ranked()[:2]}
    assert {*(tmp_path / "members").iterdir()} == kept
    assert all(checkpoint.steps(path / "checkpoints") == [2] for path in kept)

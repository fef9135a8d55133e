"""Finished sweeps for tests, written without training."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mnist_flax.compiled import init_run
from mnist_flax.config import Config
from mnist_flax.data.datasets import Dataset, dataset_info, default_data_dir
from mnist_flax.program import make_program
from mnist_flax.state import as_arrays
from mnist_flax.workdir import checkpoint, claim, run_info
from mnist_flax.workdir.resume import new_history


def row(stage: str, workdir: str | None, value: float | None, method: str = "", **overrides: Any) -> dict[str, Any]:
    """One result, with the fields that say which network is which."""
    return {"stage": stage, "workdir": workdir, "value": value, "method": method, "overrides": overrides}


def write_results(sweep: Path, rows: list[dict[str, Any]], **fields: Any) -> None:
    """Write a sweep's results, and that it is finished."""
    sweep.mkdir(parents=True, exist_ok=True)
    (sweep / "sweep.json").write_text(json.dumps({"finished": len(rows)} | fields))
    (sweep / "results.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))


def write_run(path: Path, config: Config, dataset: Dataset, sharpness: float = 1.0, left: int = 0) -> None:
    """Write a run with random weights and statistics at its last step, or with some steps `left`.

    `sharpness` multiplies the output layer, so that the probabilities of a run are not those of another.
    """
    run = run_info.new(config, dataset_info(dataset, config.train_split, config.eval_split, default_data_dir()))
    program, rng = make_program(config, run.data), np.random.default_rng(config.hparams.seed)
    state = jax.device_get(init_run(as_arrays(config.hparams), program=program))
    output = f"dense_{len(config.widths) + 1}"
    params = {name: {**leaves} for name, leaves in state.params.items()}
    params[output]["kernel"] = params[output]["kernel"] * np.float32(sharpness)
    params[output]["bias"] = rng.normal(size=params[output]["bias"].shape).astype(np.float32)
    statistics = jax.tree.map(lambda leaf: leaf + rng.random(leaf.shape, np.float32), state.batch_stats)
    step = program.total_steps - left
    path.mkdir(parents=True)
    run_info.write(path, run)
    state = state.replace(params=params, batch_stats=statistics, step=np.asarray(step, np.int32))
    checkpoint.save(claim.checkpoints_dir(path), step, state, new_history(run), keep=1)

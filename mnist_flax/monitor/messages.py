"""Messages from training to the process that writes its figures and TensorBoard files; reading them needs no JAX."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mnist_flax.config import Config
from mnist_flax.data.datasets import Dataset

Node = tuple[str, str, list[str]]
"""An operation of a network: its name, in which a slash opens a group; its kind; the names of its inputs."""


@dataclass(frozen=True)
class RunStarted:
    """What is going to be trained."""

    path: Path
    config: Config
    dataset: Dataset
    graph: list[Node]
    start: int
    """Finished updates."""
    history: list[dict[str, Any]]
    """The lines of `metrics.jsonl` so far."""


@dataclass(frozen=True)
class StepScalars:
    """Scalars of the latest steps."""

    last: int
    """Finished updates after them."""
    values: dict[str, np.ndarray]
    """float [K] by name; NaN where nothing was measured."""


@dataclass(frozen=True)
class EpochDone:
    """What is known after an epoch."""

    lines: list[dict[str, Any]]
    """Of `metrics.jsonl`: train and eval."""
    params: Any
    """numpy arrays that nobody changes."""
    first_layer: np.ndarray
    """float32 [units, H, W, C], the incoming weights of the first layer's units."""
    logits: np.ndarray | None
    """float32 [K, B, C] of the evaluation split in order, filled up at the end; None where no process has all."""


@dataclass(frozen=True)
class RunFinished:
    """The run is finished."""


Message = RunStarted | StepScalars | EpochDone | RunFinished

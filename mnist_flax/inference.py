"""Use a trained network: load a run, find its data, compute logits.

model, variables = load("exp1")
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mnist_flax.data import datasets
from mnist_flax.data.batches import eval_batches
from mnist_flax.errors import InputError
from mnist_flax.process import terminal
from mnist_flax.workdir import run_info
from mnist_flax.workdir.run_info import RunInfo

if TYPE_CHECKING:
    from mnist_flax.model import Network


def load(path: str | Path, step: str | int = "latest") -> "tuple[Network, dict[str, Any]]":
    """The network of a run, on whatever devices there are.

    Args:
      path: the run's workdir; relative and `~` paths work.
      step: `latest`, `best` or a number of finished updates.

    Returns:
      The model and its variables (params and batch_stats, numpy arrays): `model.apply(variables, images)` gives logits.

    Raises `InputError` for a run or a checkpoint that is missing, and `RunError` for one that is damaged.
    """
    workdir = Path(path).expanduser().absolute()
    _, model, variables = load_network(workdir, run_info.read(workdir), step)
    return model, variables


def load_network(workdir: Path, run: RunInfo, step: str | int) -> "tuple[int, Network, dict[str, Any]]":
    """As `load`, of an absolute path whose `config.json` has been read; the number of the step comes first."""
    step = int(step) if isinstance(step, str) and step.isdecimal() else step
    if step not in ("latest", "best") and not isinstance(step, int):
        raise InputError(f"step={step!r} is not a checkpoint; give latest, best or a number of finished steps")

    from mnist_flax.state import inference_variables
    from mnist_flax.workdir import resume

    saved = resume.load(workdir, run, step, warn=terminal.warn)
    assert saved.state is not None
    return saved.step, saved.program.model, inference_variables(saved.state)


def find_dataset(run: RunInfo, data_dir: Path | None) -> datasets.Dataset:
    """The very data that a run was trained on; raises `InputError` if it is not there, or another than the run's.

    `data_dir` is where prepared datasets live; None looks where the run found them, then in the user's cache.
    """
    name, info = run.config.dataset, run.data
    # The directory that `config.json` names is only read: its author may be somebody else.
    theirs = None if data_dir else datasets.find_decoded(name, Path(info["data_dir"]))
    ours = (data_dir or datasets.default_data_dir()).expanduser().absolute()
    dataset = theirs or datasets.open_dataset(name, ours, track=terminal.track)
    if dataset.sha256 != info["sha256"]:
        raise InputError(f"{dataset.directory} holds another {name} than the run's; give its --data-dir")
    return dataset


def is_transposed(dataset: str) -> bool:
    """Whether a dataset's images have rows for columns: TFDS gives EMNIST's as their authors do."""
    return re.split("[/:]", dataset)[0] == "emnist"


def logits_of(model: "Network", variables: dict[str, Any], images: np.ndarray, batch_size: int) -> np.ndarray:
    """Logits float32 [N, C] of uint8 or float images [N, ...], computed in batches of one compiled size."""
    import jax

    apply = jax.jit(model.apply)
    variables = jax.device_put(variables)
    batches = eval_batches(len(images), batch_size)
    logits = np.concatenate([np.asarray(apply(variables, images[batch])) for batch in batches])
    return logits[batches.ravel() >= 0]

"""Use trained networks: load a run or an ensemble, find its data, compute logits.

model, variables = load("exp1")
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mnist_flax.config import Config
from mnist_flax.data import datasets
from mnist_flax.data.batches import eval_batches
from mnist_flax.errors import InputError, wrong
from mnist_flax.process import terminal
from mnist_flax.workdir import run_info, sweep_results
from mnist_flax.workdir.run_info import RunInfo
from mnist_flax.workdir.sweep_results import Stage

if TYPE_CHECKING:
    from mnist_flax.model import Network


@dataclass(frozen=True)
class Run:
    """A run's directory, as `fit` returns it."""

    path: Path
    config: Config
    history: list[dict[str, Any]]
    """The lines of `metrics.jsonl`: step, epoch, split (train or eval), loss, accuracy, and others."""

    def load(self, step: str | int = "latest") -> "tuple[Network, dict[str, Any]]":
        """The network, as `mnist_flax.load`."""
        return load(self.path, step)


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


class LoadedNetwork(NamedTuple):
    """A run's network at one of its steps."""

    name: str  # its directory; of an ensemble, below the sweep's, such as final/0000
    run: RunInfo
    step: int
    model: "Network"
    variables: dict[str, Any]


def check_ensemble_flags(number: int | None, stage: Stage | None, step: str) -> None:
    """Raise `InputError` for `--stage` without `--ensemble`, or `--step` with it."""
    if number is None and stage is not None:
        raise wrong("stage", stage, "is for an ensemble", "give --ensemble too")
    if number is not None and step != "latest":
        raise wrong("step", step, "is for one run, and the networks of an ensemble are at their last", "leave it out")


def load_ensemble(sweep: Path, number: int, stage: Stage | None) -> tuple[Stage, list[LoadedNetwork]]:
    """The stage, and the networks that `sweep_results.choose` finds in a sweep's absolute path, the best first.

    Raises what `choose` and `load` raise, and `InputError` for a network that has not been trained to its end.
    """
    from mnist_flax.program import make_program

    stage, runs = sweep_results.choose(sweep, number, stage)
    networks = []
    for name, run in runs.items():
        step, model, variables = load_network(sweep / name, run, "latest")
        if step != (last := make_program(run.config, run.data).total_steps):
            problem = f"has {name} at step {step:,} of {last:,}"
            raise wrong("workdir", sweep, problem, "run the sweep's command again, which trains it to its end")
        networks.append(LoadedNetwork(name, run, step, model, variables))
    return stage, networks


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
    return _in_batches(model.apply, variables, images, batch_size)


def logits_of_each(
    networks: "Sequence[tuple[Network, dict[str, Any]]]", images: np.ndarray, batch_size: int
) -> np.ndarray:
    """Logits float32 [P, N, C] of P networks, as `logits_of`, in one compiled program."""
    import jax.numpy as jnp

    models = [model for model, _ in networks]

    def apply(variables: list[Any], images: Any) -> Any:  # [B, P, C]
        each: list[Any] = [model.apply(v, images) for model, v in zip(models, variables, strict=True)]
        return jnp.stack(each, axis=1)

    return _in_batches(apply, [variables for _, variables in networks], images, batch_size).swapaxes(0, 1)


def _in_batches(apply: Callable[..., Any], variables: Any, images: np.ndarray, batch_size: int) -> np.ndarray:
    """`apply(variables, images)`, an array that begins with the images' axis, in batches of one compiled size."""
    import jax

    apply, variables = jax.jit(apply), jax.device_put(variables)
    batches = eval_batches(len(images), batch_size)
    logits = np.concatenate([np.asarray(apply(variables, images[batch])) for batch in batches])
    return logits[batches.ravel() >= 0]

"""Begin with the weights and BatchNorm statistics of another run: `--init-from exp1`.

check(source, path, config)
initial = find(source, path, dataset_info)  # what config.json records: the checkpoint and its checksum
state = first_state(state, run)
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_flax.config import Config
from mnist_flax.errors import InputError, wrong
from mnist_flax.process.files import sha256
from mnist_flax.process.terminal import say, warn
from mnist_flax.workdir import checksums, claim, run_info
from mnist_flax.workdir.run_info import RunInfo

if TYPE_CHECKING:
    from mnist_flax.state import TrainState


def check(source: Path | None, path: Path, config: Config) -> None:
    """Raise `InputError` if the run `path` began with other weights, or the run `source` has other layers."""
    if claim.is_run(path):
        began = run_info.read(path).initial.get("workdir")
        if began != (source and str(source)):
            remedy = f"give --init-from {began}" if began else "leave it out"
            problem = f"is not what {path} began with ({began or 'random weights'})"
            raise wrong("init_from", source and str(source), problem, f"{remedy}, or give another --workdir")
    elif source:
        theirs = run_info.read(source).config
        for name in ("widths", "batch_norm_layers"):
            ours, there = getattr(config, name), getattr(theirs, name)
            if ours != there:
                flag = f"--{name.replace('_', '-')} {' '.join(map(str, there))}".strip()
                raise wrong("init_from", str(source), f"has {name}={there} (here {ours})", f"give {flag}")


def find(source: Path | None, path: Path, data: dict[str, Any]) -> dict[str, Any]:
    """The latest checkpoint of `source`: its workdir, step and sha256 (of its sums); {} for random weights.

    Also `trained_on`, the data's checksums and the training split of `source`, and of the runs that it began with.
    A run that exists keeps what it began with, however far `source` has come since. `data` is that of the new run;
    raises `InputError` if its images are of another size.
    """
    if claim.is_run(path):
        return run_info.read(path).initial
    if not source:
        return {}
    from mnist_flax.workdir import checkpoint

    saved = checkpoint.steps(claim.checkpoints_dir(source))
    if not saved:
        raise wrong("init_from", str(source), "holds no checkpoint yet", "train it first")
    theirs = run_info.read(source)
    if theirs.data["image_shape"] != data["image_shape"]:
        problem = f"has images of another size: {theirs.data['image_shape']}, here {data['image_shape']}"
        raise wrong("init_from", str(source), problem, "give a run on images of the same size")
    seen = [[theirs.data["sha256"], theirs.config.train_split], *theirs.initial.get("trained_on", [])]
    return {"workdir": str(source), "step": saved[-1], "sha256": _sum_of(source, saved[-1]), "trained_on": seen}


def _sum_of(source: Path, step: int) -> str:
    sums = claim.checkpoints_dir(source) / str(step) / checksums.NAME
    return sha256(sums) if sums.is_file() else ""


def first_state(state: "TrainState", run: RunInfo) -> "TrainState":
    """The state before the first step (numpy arrays) with the weights and statistics of `run.initial`.

    The output layer stays random if the other run has another number of classes. Raises `InputError` if the checkpoint
    is gone or another, or any other layer has another shape.
    """
    from flax.traverse_util import flatten_dict, unflatten_dict

    from mnist_flax.state import inference_variables
    from mnist_flax.workdir import resume

    source, step = Path(run.initial["workdir"]), run.initial["step"]
    saved = resume.load(source, run_info.read(source), step, warn=warn)
    if _sum_of(source, step) != run.initial["sha256"]:
        raise InputError(f"init_from={str(source)!r} holds another step {step} than this run began with; restore it")
    assert saved.state is not None
    output = saved.program.model.kernel_path(len(run.config.widths) + 1)[0]
    theirs: dict[tuple[str, ...], Any] = flatten_dict(inference_variables(saved.state))
    ours: dict[tuple[str, ...], Any] = flatten_dict(inference_variables(state))
    new_output = saved.program.num_classes != len(run.data["class_names"])
    for where, leaf in ours.items():
        if new_output and output in where:
            theirs[where] = leaf
        elif theirs[where].shape != leaf.shape:
            problem = f"has images of another size: {'/'.join(where)} is {theirs[where].shape}, here {leaf.shape}"
            raise wrong("init_from", str(source), problem, "give a run on images of the same size")
    classes = f"; its {saved.program.num_classes} classes are others, so the output layer is new" if new_output else ""
    say(f"begins with the weights of {source} at step {step:,}{classes}")
    return dataclasses.replace(state, **unflatten_dict(theirs))

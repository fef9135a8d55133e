"""A run's network as one file for other programs, which has reproduced the run's own logits before it gets its name.

python -m mnist_flax.export --workdir exp1 --format onnx --out exp1.onnx

Every file takes raw pixels, 0 to 255; scaling and flattening happen inside. How to open it, and where its metadata is,
stands in the modules `keras`, `onnx`, `stablehlo` and `html` of this folder.
"""

import importlib.metadata
import importlib.util
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mnist_flax import inference
from mnist_flax.config import to_json
from mnist_flax.errors import InputError, RunError, wrong
from mnist_flax.process import cli, files
from mnist_flax.process.signals import Stopped, StopSignals
from mnist_flax.process.terminal import say
from mnist_flax.workdir import run_info
from mnist_flax.workdir.run_info import RunInfo, commit, versions

if TYPE_CHECKING:
    from mnist_flax.export.network import TrainedNetwork

SUFFIXES = {"keras": (".keras", ".h5"), "onnx": (".onnx",), "stablehlo": (".stablehlo",), "html": (".html",)}
CHECKED = 1000  # examples of the evaluation split
TOLERANCE = 1e-4  # of a logit

Write = Callable[[Path, "TrainedNetwork", dict[str, Any]], None]
Logits = Callable[[Path, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Args:
    """Write a run's network as one file that takes raw pixels, and hold it to the run's own logits.

    The file is written under another name, opened again by its own runtime and run on 1,000 examples of the run's
    evaluation split; only when every logit is the run's to 1e-4 does it take its name, and replace what had it. Step,
    accuracy, config, data, versions and the commit that trained it are inside: in the entry mnist_flax.json of a .keras
    file, the data set mnist_flax of a .h5 file, the metadata of ONNX, the last line of a .stablehlo file, on the page.
    """

    workdir: Path
    """Directory of the run."""
    format: Literal["keras", "onnx", "stablehlo", "html"]
    """keras: any backend; stablehlo: JAX on cpu, cuda, tpu, for six months; html: of 28 x 28 pixels, 10 classes."""
    out: Path
    """The file: .keras or .h5 (keras), .onnx, .stablehlo or .html."""
    step: str = "latest"
    """The checkpoint: latest, best (by accuracy on the run's evaluation split) or a step."""
    data_dir: Path | None = None
    """Where prepared datasets live. Default: where the run found them, or else the user's cache."""
    traceback: bool = False  # read from sys.argv by `cli.main`, since parsing itself may fail
    """Show where an error comes from."""


def run(args: Args, signals: StopSignals) -> None:
    """The command: check everything that can be wrong, then write."""
    path, out = args.workdir.expanduser().absolute(), args.out.expanduser().absolute()
    info = run_info.read(path)
    _check(args.format, out, info)
    write, logits_of_file = _functions(args.format)
    step, _, variables = inference.load_network(path, info, args.step)
    dataset = inference.find_dataset(info, args.data_dir)
    split = dataset.read(info.config.eval_split)

    import jax

    from mnist_flax.export.network import TrainedNetwork
    from mnist_flax.program import make_program

    model = make_program(replace(info.config, precision="float32"), info.data).model  # whatever training multiplied in
    network = TrainedNetwork(info.config, dataset.image_shape, info.data["class_names"], model, variables)
    # Some devices multiply float32 matrices in less precision unless told otherwise.
    with jax.default_matmul_precision("highest"), jax.numpy_rank_promotion("allow"), signals.deferred():
        want = inference.logits_of(model, variables, split.images, info.config.eval_batch_size)
        about = metadata(info, step, want, split.labels)
        with files.replacing(out) as scratch:
            write(scratch, network, about)
            got = logits_of_file(scratch, np.asarray(split.images[:CHECKED]))
            same_shape = got.shape == want[:CHECKED].shape
            difference = float(np.abs(got.astype(np.float64) - want[:CHECKED]).max()) if same_shape else math.inf
            if signals.received:
                raise Stopped(signals.received, f"{out} was not written")
            if not difference <= TOLERANCE:  # also if it is NaN
                raise RunError(
                    f"the {args.format} file was written and opened, but a logit of {len(got):,} examples differs "
                    f"from the run's by {difference:.2g}, more than {TOLERANCE:g}; it was removed"
                )
    accuracy = (got.argmax(axis=1) == split.labels[:CHECKED]).mean()
    say(
        f"{args.out} ({args.format}, {out.stat().st_size:,} bytes): step {step:,} of {path.name}; "
        f"opened again, its logits of {len(got):,} examples differ from the run's by {difference:.1e} at most, "
        f"{accuracy:.2%} of them correct"
    )


def metadata(run: RunInfo, step: int, logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """What a file says about itself, as JSON values; from the logits [N, C] of the run's whole evaluation split."""
    writers = filter(importlib.util.find_spec, ("keras", "onnx", "onnxruntime"))
    return {
        "step": step,
        "accuracy": float((logits.argmax(axis=1) == labels).mean()),
        "examples": len(labels),
        "dataset": run.config.dataset,
        "split": run.config.eval_split,
        "image_shape": run.data["image_shape"],
        "class_names": run.data["class_names"],
        "commit": run.commit,
        "config": to_json(run.config),
        "versions": versions() | {package: importlib.metadata.version(package) for package in writers},
        "trained_under": run.versions,
        "exported_at": commit(),
    }


def _check(format: str, out: Path, run: RunInfo) -> None:
    """Raise `InputError` for what can be known to be wrong before anything is loaded."""
    if out.suffix not in SUFFIXES[format]:
        remedy = f"give one ending in {' or '.join(SUFFIXES[format])}"
        raise wrong("out", out, f"is not a name for format={format}", remedy)
    if not out.parent.is_dir():
        raise wrong("out", out, f"cannot be written: {out.parent} is not a directory", "create it")
    if not os.access(out.parent, os.W_OK):
        raise InputError(f"out={str(out)!r} cannot be written: no permission to write in {out.parent}")
    if out.is_dir():
        raise wrong("out", out, "is a directory", "give the name of a file")
    shape, classes = run.data["image_shape"], len(run.data["class_names"])
    if format == "html" and (shape != [28, 28, 1] or classes > 10):
        problem = f"is for images of [28, 28, 1] and at most 10 classes, and this run's are {shape} and {classes}"
        raise wrong("format", format, problem, "give keras, onnx or stablehlo")
    if format == "html" and inference.is_transposed(run.config.dataset):
        problem = f"reads upright drawings, and the images of {run.config.dataset} have rows for columns"
        raise wrong("format", format, problem, "give keras, onnx or stablehlo")


def _functions(format: str) -> tuple[Write, Logits]:
    """How to write a format, and what its own runtime makes of a file."""
    try:
        match format:
            case "keras":
                from mnist_flax.export import keras as module
            case "onnx":
                from mnist_flax.export import onnx as module
            case "stablehlo":
                from mnist_flax.export import stablehlo as module
            case _:
                from mnist_flax.export import html as module
    except ImportError as error:
        problem = f"needs a package that is not installed ({error})"
        raise wrong("format", format, problem, "pip install 'mnist_flax[export]'") from error
    return module.write, module.logits


if __name__ == "__main__":
    cli.main(Args, run)

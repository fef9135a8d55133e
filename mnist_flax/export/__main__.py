"""A run's network as one file for other programs, which has reproduced the run's own logits before it gets its name.

python -m mnist_flax.export --workdir exp1 --format onnx --out exp1.onnx
python -m mnist_flax.export --workdir sweeps/x --ensemble 10 --format onnx --out x.onnx

Every file takes raw pixels, 0 to 255; scaling and flattening happen inside. How to open it, and where its metadata is,
stands in the modules `keras`, `onnx`, `stablehlo` and `html` of this folder.
"""

import importlib.metadata
import importlib.util
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mnist_flax import inference
from mnist_flax.config import to_json
from mnist_flax.errors import InputError, RunError, wrong
from mnist_flax.inference import LoadedNetwork
from mnist_flax.process import cli, files
from mnist_flax.process.signals import Stopped, StopSignals
from mnist_flax.process.terminal import say
from mnist_flax.workdir import run_info
from mnist_flax.workdir.run_info import RunInfo, commit, versions
from mnist_flax.workdir.sweep_results import Stage

SUFFIXES = {"keras": (".keras", ".h5"), "onnx": (".onnx",), "stablehlo": (".stablehlo",), "html": (".html",)}
CHECKED = 1000  # examples of the evaluation split
TOLERANCE = 1e-4  # of a logit

Write = Callable[[Path, Any, dict[str, Any]], None]  # of a TrainedNetwork; onnx, of a list of them too
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
    """Directory of the run; with --ensemble, of the sweep."""
    format: Literal["keras", "onnx", "stablehlo", "html"]
    """keras: any backend; stablehlo: JAX on cpu, cuda, tpu, for six months; html: of 28 x 28 pixels, 10 classes."""
    out: Path
    """The file: .keras or .h5 (keras), .onnx, .stablehlo or .html."""
    step: str = "latest"
    """The checkpoint: latest, best (by accuracy on the run's evaluation split) or a step."""
    ensemble: int | None = None
    """How many networks of a sweep to average, the best by validation first; for onnx."""
    stage: Stage | None = None
    """With --ensemble: networks of the final test, or those of the selection that were kept (KEEP in the experiment
    file). Default: of the final test, if there was one."""
    data_dir: Path | None = None
    """Where prepared datasets live. Default: where the run found them, or else the user's cache."""


def run(args: Args, signals: StopSignals) -> None:
    """The command: check everything that can be wrong, then write."""
    path, out = args.workdir.expanduser().absolute(), args.out.expanduser().absolute()
    _check_flags(args, out)
    (write, logits_of_file), loaded = _functions(args.format), _load(args, path)
    info = loaded[0].run
    dataset = inference.find_dataset(info, args.data_dir)
    split = dataset.read(info.config.eval_split)

    import jax

    from mnist_flax.export.network import logits_of, trained_network

    networks = [trained_network(each, dataset.image_shape) for each in loaded]
    what, whose = (networks[0], "run") if args.ensemble is None else (networks, "ensemble")
    # Some devices multiply float32 matrices in less precision unless told otherwise.
    with jax.default_matmul_precision("highest"), jax.numpy_rank_promotion("allow"), signals.deferred():
        want = logits_of(what, split.images, info.config.eval_batch_size)
        about = metadata(info, loaded[0].step, want, split.labels)
        if args.ensemble is not None:
            about = _metadata_of_ensemble(loaded, about)
        with files.replacing(out) as scratch:
            write(scratch, what, about)
            got = logits_of_file(scratch, np.asarray(split.images[:CHECKED]))
            same_shape = got.shape == want[:CHECKED].shape
            difference = float(np.abs(got.astype(np.float64) - want[:CHECKED]).max()) if same_shape else math.inf
            if signals.received:
                raise Stopped(signals.received, f"{out} was not written")
            if not difference <= TOLERANCE:  # also if it is NaN
                raise RunError(
                    f"the {args.format} file was written and opened, but a logit of {len(got):,} examples differs "
                    f"from the {whose}'s by {difference:.2g}, more than {TOLERANCE:g}; it was removed"
                )
    accuracy = (got.argmax(axis=1) == split.labels[:CHECKED]).mean()
    which = f"step {loaded[0].step:,}" if args.ensemble is None else f"mean of {len(loaded)} networks"
    say(
        f"{args.out} ({args.format}, {out.stat().st_size:,} bytes): {which} of {path.name}; "
        f"opened again, its logits of {len(got):,} examples differ from the {whose}'s by {difference:.1e} at most, "
        f"{accuracy:.2%} of them correct"
    )


def _load(args: Args, path: Path) -> list[LoadedNetwork]:
    """The run's network, or an ensemble's networks."""
    if args.ensemble is not None:
        return inference.load_ensemble(path, args.ensemble, args.stage)[1]
    info = run_info.read(path)
    _check_format(args.format, info)
    return [LoadedNetwork(path.name, info, *inference.load_network(path, info, args.step))]


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


def _metadata_of_ensemble(loaded: list[LoadedNetwork], about: dict[str, Any]) -> dict[str, Any]:
    """The metadata of the first network, but with what each network has for itself in a list, `networks`."""
    networks = []
    for each in loaded:
        own = {"network": each.name, "step": each.step, "commit": each.run.commit, "config": to_json(each.run.config)}
        networks.append(own | {"trained_under": each.run.versions})
    return {name: value for name, value in about.items() if name not in networks[0]} | {"networks": networks}


def _check_flags(args: Args, out: Path) -> None:
    """Raise `InputError` for flags that are wrong whatever the run is."""
    format = args.format
    inference.check_ensemble_flags(args.ensemble, args.stage, args.step)
    if args.ensemble is not None and format != "onnx":
        raise wrong("format", format, "is for one network, not for an ensemble", "give onnx")
    if out.suffix not in SUFFIXES[format]:
        remedy = f"give one ending in {' or '.join(SUFFIXES[format])}"
        raise wrong("out", out, f"is not a name for format={format}", remedy)
    if not out.parent.is_dir():
        raise wrong("out", out, f"cannot be written: {out.parent} is not a directory", "create it")
    if not os.access(out.parent, os.W_OK):
        raise InputError(f"out={str(out)!r} cannot be written: no permission to write in {out.parent}")
    if out.is_dir():
        raise wrong("out", out, "is a directory", "give the name of a file")


def _check_format(format: str, run: RunInfo) -> None:
    """Raise `InputError` for a run that a format is not for, before its network is loaded."""
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

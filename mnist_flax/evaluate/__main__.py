"""Evaluate a run, or an ensemble of a sweep's networks, on every example of a split.

python -m mnist_flax.evaluate --workdir exp1 --step best
python -m mnist_flax.evaluate --workdir sweeps/x --ensemble 10
"""

import errno
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mnist_flax import inference, metrics
from mnist_flax.data import splits
from mnist_flax.errors import wrong
from mnist_flax.evaluate.report import as_csv, print_report
from mnist_flax.process import cli, files
from mnist_flax.process.signals import StopSignals
from mnist_flax.process.terminal import say, warn
from mnist_flax.workdir import claim, run_info
from mnist_flax.workdir.run_info import RunInfo
from mnist_flax.workdir.sweep_results import Stage

if TYPE_CHECKING:
    import numpy as np

    from mnist_flax.data.batches import Split

ENSEMBLE = "ensemble"  # a directory in the sweep's
_SCORES = ("examples", "correct", "accuracy", "accuracy_interval", "cross_entropy", "expected_calibration_error")


@dataclass(frozen=True)
class Args:
    """Evaluate a run on every example of a split; prints a report, writes it to evaluation.json, and draws figures.

    Or, with --ensemble, the mean of the probabilities of several networks of a finished sweep, next to each alone: the
    report and the figures go to ensemble/ in the sweep's directory.
    """

    workdir: Path
    """Directory of the run; with --ensemble, of the sweep."""
    step: str = "latest"
    """The checkpoint: latest, best (by accuracy on the run's evaluation split) or a step."""
    split: str | None = None
    """TFDS split. Default: the run's evaluation split."""
    ensemble: int | None = None
    """How many networks of a sweep to average, the best by validation first."""
    stage: Stage | None = None
    """With --ensemble: networks of the final test, or those of the selection that were kept (KEEP in the experiment
    file). Default: of the final test, if there was one."""
    figures: bool = True
    """Draw the confusion matrix, the worst mistakes, reliability and the first layer's weights."""
    predictions: Path | None = None
    """Also write a CSV file with a line for each example: index, label, prediction, probabilities."""
    json: bool = False
    """Print the report as one JSON object."""
    data_dir: Path | None = None
    """Where prepared datasets live. Default: where the run found them, or else the user's cache."""


class _Evaluated(NamedTuple):
    """A network, or an ensemble, on a split."""

    directory: Path  # where the report and the figures go
    run: RunInfo  # of an ensemble, that of its first network
    split: "Split"
    logits: "np.ndarray"  # [N, C]; of an ensemble, the logarithms of its probabilities
    pictures: "np.ndarray | None"  # of the first layer's weights; None for an ensemble
    about: dict[str, Any]  # for the report


def run(args: Args, signals: StopSignals) -> None:
    """The command."""
    path = args.workdir.expanduser().absolute()
    inference.check_ensemble_flags(args.ensemble, args.stage, args.step)
    predictions = args.predictions and args.predictions.expanduser().absolute()
    if predictions and not predictions.parent.is_dir():
        raise wrong("predictions", args.predictions, "is in no directory", "create it, or give another path")
    if predictions and predictions.is_dir():
        raise wrong("predictions", args.predictions, "is a directory", "give the path of a file")
    found = _evaluate_run(args, path) if args.ensemble is None else _evaluate_ensemble(args, path, args.ensemble)
    class_names, (images, labels) = found.run.data["class_names"], found.split
    where = {"dataset": found.run.config.dataset, "split": args.split or found.run.config.eval_split}
    report = found.about | where | metrics.evaluation_report(found.logits, labels)
    if args.json:
        say(json.dumps(report | {"class_names": class_names}))
    else:
        print_report(report, class_names)
    if predictions:
        text = as_csv(found.logits, labels, class_names)
        if predictions.exists() and not predictions.is_file():  # a pipe, or a device such as /dev/stdout
            predictions.write_text(text, encoding="utf-8")
        else:
            files.write_text(predictions.resolve(), text)  # what a link names is replaced, not the link
    written = found.directory / "evaluation.json"
    try:
        found.directory.mkdir(exist_ok=True)  # of an ensemble; a run's is there
        files.write_text(written, json.dumps(report | {"class_names": class_names}) + "\n")
        if args.figures:
            from mnist_flax.figures.charts import evaluation_figures

            figures = found.directory / "figures"
            evaluation_figures(figures, images, labels, found.logits, found.pictures, class_names)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        (warn if args.json else say)(f"not written: {path} may only be read ({error.strerror})")  # a colleague's run
        return
    if not args.json:
        say(f"written to {written}" + (f" and {found.directory / 'figures'}" if args.figures else ""))


def _evaluate_run(args: Args, path: Path) -> _Evaluated:
    """Evaluate the network of a run."""
    info = run_info.read(path)
    claim.check_entries(path)
    splits.check(info.config.dataset, args.split or info.config.eval_split)
    step, model, variables = inference.load_network(path, info, args.step)
    dataset = inference.find_dataset(info, args.data_dir)
    split = dataset.read(args.split or info.config.eval_split)
    logits = inference.logits_of(model, variables, split.images, info.config.eval_batch_size)
    pictures = model.first_layer_pictures(variables["params"], dataset.image_shape)
    on = args.split or info.config.eval_split
    seen = args.step == "best" and splits.overlap(info.config.eval_split, on, dataset.examples)
    return _Evaluated(path, info, split, logits, pictures, {"step": step} | ({"chosen_on_it": True} if seen else {}))


def _evaluate_ensemble(args: Args, path: Path, number: int) -> _Evaluated:
    """Evaluate the mean of the probabilities of a sweep's networks, and each network alone."""
    stage, networks = inference.load_ensemble(path, number, args.stage)
    files.check_entries(path, [ENSEMBLE])
    claim.check_entries(path / ENSEMBLE)
    info = networks[0].run
    chosen_on, on = info.config.eval_split, args.split or info.config.eval_split
    splits.check(info.config.dataset, on)
    dataset = inference.find_dataset(info, args.data_dir)
    split = dataset.read(on)
    pairs = [(network.model, network.variables) for network in networks]
    each = inference.logits_of_each(pairs, split.images, info.config.eval_batch_size)
    alone = []
    for network, logits in zip(networks, each, strict=True):
        scores = metrics.evaluation_report(logits, split.labels)
        alone.append({"network": network.name} | {name: scores[name] for name in _SCORES})
    seen = stage == "selection" and splits.overlap(chosen_on, on, dataset.examples)
    about = {"stage": stage, "networks": alone, "best_single": alone[0]["network"], "chosen_on_it": seen}
    return _Evaluated(path / ENSEMBLE, info, split, metrics.log_mean_softmax(each), None, about)


if __name__ == "__main__":
    cli.main(Args, run)

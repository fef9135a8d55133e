"""Exact evaluation of a run, knowing nothing but its directory; and loading it in Python.

python -m mnist_flax.evaluate --workdir exp1 --step best

model, variables = mnist_flax.load("exp1")
logits = model.apply(variables, images)
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mnist_flax import console, data, metrics, record, splits, workdir, writer
from mnist_flax.config import InputError

if TYPE_CHECKING:
    from mnist_flax.model import MLP


@dataclass(frozen=True)
class Args:
    """Evaluate a run on every example of a split; prints a report, writes it to evaluation.json, and draws figures."""

    workdir: Path
    """Directory of the run."""
    step: str = "latest"
    """The checkpoint: latest, best (by accuracy on the run's evaluation split) or a step."""
    split: str | None = None
    """TFDS split. Default: the run's evaluation split."""
    figures: bool = True
    """Draw the confusion matrix, the worst mistakes, reliability and the first layer's weights."""
    data_dir: Path | None = None
    """Where prepared datasets live. Default: where the run found them, or else our own directory."""
    traceback: bool = False  # read from sys.argv by `console.main`, since parsing itself may fail
    """Show where an error comes from."""


def load(path: str | Path, step: str | int = "latest") -> "tuple[MLP, dict[str, Any]]":
    """The network of a run, on whatever devices there are.

    Args:
      path: the run's workdir; relative and `~` paths work.
      step: `latest`, `best` or a number of finished updates.

    Returns:
      The model and its variables (params and batch_stats, numpy arrays): `model.apply(variables, images)` gives logits.

    Raises:
      InputError: there is no such run or checkpoint.
      RunError: the checkpoint is damaged.
    """
    _, model, variables = restore(Path(path).expanduser().absolute(), step)
    return model, variables


def restore(path: Path, step: str | int) -> "tuple[int, MLP, dict[str, Any]]":
    """As `load`, of an absolute path, with the number of the step in front."""
    recorded = record.read(path)
    step = int(step) if isinstance(step, str) and step.isdecimal() else step
    if step not in ("latest", "best") and not isinstance(step, int):
        raise InputError(f"step={step!r} is no checkpoint; give latest, best or a number of finished steps")

    from mnist_flax import checkpoint
    from mnist_flax.state import make_model

    identity = record.identity_of(recorded)
    step, state, _ = checkpoint.restore(workdir.checkpoints(path), step, identity=identity, warn=console.warn)
    model = make_model(recorded.config, len(recorded.data["class_names"]))
    return step, model, {"params": state["params"], "batch_stats": state["batch_stats"]}


def find_dataset(recorded: record.Run, data_dir: Path | None) -> data.Dataset:
    """The very data that a run was trained on.

    Args:
      recorded: the run.
      data_dir: where prepared datasets live; None looks where the run found it, then in our own directory.

    Raises:
      InputError: it is not there, or another than the run's.
    """
    name, facts = recorded.config.dataset, recorded.data
    # The directory that `config.json` names is only read: its author may be somebody else.
    theirs = None if data_dir else data.find_decoded(name, Path(facts["data_dir"]))
    ours = (data_dir or data.default_data_dir()).expanduser().absolute()
    dataset = theirs or data.open_dataset(name, ours, track=console.track)
    if dataset.sha256 != facts["sha256"]:
        raise InputError(f"{dataset.directory} holds another {name} than the run's; give its --data-dir")
    return dataset


def logits_of(model: "MLP", variables: dict[str, Any], images: np.ndarray, batch_size: int) -> np.ndarray:
    """Logits float32 [N, C] of uint8 or float images [N, ...], computed in batches of one compiled size."""
    import jax

    apply = jax.jit(model.apply)
    variables = jax.device_put(variables)
    batches = data.eval_batches(len(images), batch_size)
    logits = np.concatenate([np.asarray(apply(variables, images[batch])) for batch in batches])
    return logits[batches.ravel() >= 0]


def run(args: Args, signals: console.StopSignals) -> None:
    """The command."""
    path = args.workdir.expanduser().absolute()
    recorded = record.read(path)
    config, facts = recorded.config, recorded.data
    splits.check(config.dataset, args.split or config.eval_split)
    step, model, variables = restore(path, args.step)
    dataset = find_dataset(recorded, args.data_dir)
    split = dataset.read(args.split or config.eval_split)
    logits = logits_of(model, variables, split.images, config.eval_batch_size)
    about = {"step": step, "dataset": config.dataset, "split": args.split or config.eval_split}
    report = about | metrics.report(logits, split.labels)
    _print(report, facts["class_names"])
    writer.write_text(path / "evaluation.json", json.dumps(report | {"class_names": facts["class_names"]}) + "\n")
    if args.figures:
        from mnist_flax.run_figures import evaluation_figures

        kernel = np.asarray(variables["params"]["dense_1"]["kernel"])
        evaluation_figures(path / "figures", split.images, split.labels, logits, kernel, facts["class_names"])
    console.say(f"written to {path / 'evaluation.json'}" + (f" and {path / 'figures'}" if args.figures else ""))


def _print(report: dict[str, Any], class_names: list[str]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    console.say(
        f"{report['dataset']} {report['split']}, step {report['step']:,}: "
        f"{report['correct']:,} of {report['examples']:,} correct ({report['accuracy']:.2%}), "
        f"cross-entropy {report['cross_entropy']:.4f} nats, "
        f"expected calibration error {report['expected_calibration_error']:.4f}"
    )
    table = Table(title="rows: truth, columns: prediction", box=SIMPLE, padding=(0, 1), title_justify="left")
    table.add_column("class", justify="left")
    for index in range(len(class_names)):
        table.add_column(str(index), justify="right")
    table.add_column("right", justify="right")
    for index, row in enumerate(report["confusion_matrix"]):
        name = class_names[index] if class_names[index] == str(index) else f"{index} {class_names[index]}"
        accuracy = report["per_class_accuracy"][index]
        cells = [str(count) if count else "." for count in row]
        table.add_row(name, *cells, "-" if accuracy is None else f"{accuracy:.2%}")
    Console(width=max(80, 8 * len(class_names))).print(table)  # a narrow terminal may wrap it, but nothing is left out


if __name__ == "__main__":
    console.main(Args, run)

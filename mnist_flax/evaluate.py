"""Evaluate a run on every example of a split, knowing nothing but its directory.

python -m mnist_flax.evaluate --workdir exp1 --step best
"""

import errno
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnist_flax import inference, metrics
from mnist_flax.data import splits
from mnist_flax.process import cli, files
from mnist_flax.process.signals import StopSignals
from mnist_flax.process.terminal import say
from mnist_flax.workdir import claim, run_info


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
    """Where prepared datasets live. Default: where the run found them, or else the user's cache."""
    traceback: bool = False  # read from sys.argv by `cli.main`, since parsing itself may fail
    """Show where an error comes from."""


def run(args: Args, signals: StopSignals) -> None:
    """The command."""
    path = args.workdir.expanduser().absolute()
    info = run_info.read(path)
    claim.check_entries(path)
    config, class_names = info.config, info.data["class_names"]
    splits.check(config.dataset, args.split or config.eval_split)
    step, model, variables = inference.load_network(path, info, args.step)
    dataset = inference.find_dataset(info, args.data_dir)
    split = dataset.read(args.split or config.eval_split)
    logits = inference.logits_of(model, variables, split.images, config.eval_batch_size)
    about = {"step": step, "dataset": config.dataset, "split": args.split or config.eval_split}
    report = about | metrics.evaluation_report(logits, split.labels)
    _print(report, class_names)
    try:
        files.write_text(path / "evaluation.json", json.dumps(report | {"class_names": class_names}) + "\n")
        if args.figures:
            from mnist_flax.figures.charts import evaluation_figures

            pictures = model.first_layer_pictures(variables["params"], dataset.image_shape)
            evaluation_figures(path / "figures", split.images, split.labels, logits, pictures, class_names)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        say(f"not written: {path} may only be read ({error.strerror})")  # a colleague's run
        return
    say(f"written to {path / 'evaluation.json'}" + (f" and {path / 'figures'}" if args.figures else ""))


def _print(report: dict[str, Any], class_names: list[str]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    say(
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
    width = max(80, 8 * len(class_names))  # a narrow terminal may wrap it, but nothing is left out
    console = Console(width=width, force_terminal=False, markup=False, emoji=False)  # a class may be named [/x]
    with console.capture() as printed:
        console.print(table)
    say(printed.get())


if __name__ == "__main__":
    cli.main(Args, run)

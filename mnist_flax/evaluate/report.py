"""Print an evaluation, and write its predictions as CSV."""

import csv
import io
from typing import TYPE_CHECKING, Any

from mnist_flax import metrics
from mnist_flax.process.terminal import say

if TYPE_CHECKING:
    import numpy as np


def print_report(report: dict[str, Any], class_names: list[str]) -> None:
    """The scores in sentences, and the confusion matrix as a table."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    networks = report.get("networks")
    who = f"mean of {len(networks)} networks ({report['stage']})" if networks else f"step {report['step']:,}"
    say(f"{report['dataset']} {report['split']}, {who}: {_scores(report)}")
    if networks:
        best = f"best single network by validation (of equals, the first), {report['best_single']}"
        say(f"{best}: {_scores(networks[0])}")
        accuracies = [network["accuracy"] for network in networks]
        middle, low, high = sum(accuracies) / len(networks), min(accuracies), max(accuracies)
        say(f"the single networks: {middle:.2%} correct on average, from {low:.2%} to {high:.2%}")
    if report.get("chosen_on_it"):
        what = "the networks were chosen by their" if networks else "this step was chosen by its"
        say(f"{what} accuracy on this split: the numbers are too good; give another --split")
    table = Table(title="rows: truth, columns: prediction", box=SIMPLE, padding=(0, 0, 0, 1), title_justify="left")
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


def _scores(scores: dict[str, Any]) -> str:
    low, high = scores["accuracy_interval"]
    return (
        f"{scores['correct']:,} of {scores['examples']:,} correct ({scores['accuracy']:.2%}, "
        f"95 % interval {low:.2%} to {high:.2%})\n"
        f"cross-entropy {scores['cross_entropy']:.4f} nats, "
        f"expected calibration error {scores['expected_calibration_error']:.4f}"
    )


def as_csv(logits: "np.ndarray", labels: "np.ndarray", class_names: list[str]) -> str:
    """Index, label and prediction (both from 0), and the probability of each class, under its name."""
    file = io.StringIO()
    out = csv.writer(file, lineterminator="\n")
    out.writerow(["index", "label", "prediction", *(f"probability of {name}" for name in class_names)])
    rows = zip(labels.tolist(), logits.argmax(axis=1).tolist(), metrics.softmax(logits).tolist(), strict=True)
    for index, (label, prediction, probabilities) in enumerate(rows):
        out.writerow([index, label, prediction, *probabilities])
    return file.getvalue()

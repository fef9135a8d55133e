"""Draw the evaluations of several runs in one figure: accuracy and cross-entropy by epoch."""

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from mnist_flax.compare.runs import Run, described, differing
from mnist_flax.figures.axes import COLORS, open_grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*"]
_LINES: list[Any] = ["-", "--", ":", "-."]  # one more for every eight curves
_SHOWN = (("accuracy", 100, "accuracy (%)"), ("cross_entropy", 1, "cross-entropy (nats)"))


def curves(runs: dict[str, Run]) -> "Figure":
    """Accuracy and cross-entropy on each run's evaluation split, after each epoch; in the legend, the best come first.

    Runs whose settings differ in the seed alone are one line, their mean, in a band from the lowest to the highest.
    """
    settings = {name: run.settings for name, run in runs.items()}
    differ = differing([*settings.values()])
    by_settings: dict[str, list[str]] = {}
    for name in runs:
        by_settings.setdefault(json.dumps(settings[name] | {"seed": None}), []).append(name)
    accuracies = {name: run.evaluations[-1]["accuracy"] if run.evaluations else 0.0 for name, run in runs.items()}
    groups = sorted(by_settings.values(), key=lambda names: -sum(map(accuracies.__getitem__, names)) / len(names))
    labels = [_label(names, settings, differ) for names in groups]
    columns = 1 if max(map(len, labels)) > 60 else 2
    title = "After each epoch, on the evaluation split"
    title += "; bands go from the lowest to the highest of the seeds" * (len(groups) < len(runs))
    height = (3.2 if len(groups) <= len(COLORS) else 4.2) + 0.19 * -(-len(groups) // columns)
    figure, axes = open_grid(title, 1, 2, 9, height)
    for axis, (field, factor, label) in zip(axes, _SHOWN, strict=True):
        late = [_draw(axis, [runs[name] for name in names], field, factor, index) for index, names in enumerate(groups)]
        low, high = np.concatenate(late).min(initial=np.inf), np.concatenate(late).max(initial=-np.inf)
        if high > low:  # the steep first quarter may leave the picture
            margin = 0.05 * (high - low)
            axis.set_ylim(low - margin, None) if field == "accuracy" else axis.set_ylim(None, high + margin)
        axis.locator_params(axis="x", integer=True)
        axis.set(xlabel="epoch", ylabel=label)
    numbers, place = [*map(str, range(len(labels)))], "outside lower left"
    legend = figure.legend(axes[0].get_lines(), numbers, frameon=False, fontsize=8, ncols=columns, loc=place)
    for text, label in zip(legend.get_texts(), labels, strict=True):  # a name may hold dollar signs, or begin with _
        text.set_parse_math(False)
        text.set_text(label)
    return figure


def _label(names: list[str], settings: dict[str, dict[str, Any]], differ: list[str]) -> str:
    """What stands in the legend for a run, or for runs that differ in the seed alone."""
    if len(names) == 1:
        return ": ".join(filter(None, [names[0], described(settings[names[0]], differ)]))
    others = described(settings[names[0]], [name for name in differ if name != "seed"])
    return f"{others or 'all'} ({len(names)} runs: {names[0]}, ...)"


def _draw(axis: "Axes", runs: list[Run], field: str, factor: float, index: int) -> np.ndarray:
    """One curve: a run's, or the mean of several runs over the epochs that all have finished; gives its last 3/4."""
    color, style = COLORS[index % len(COLORS)], _LINES[index // len(COLORS) % len(_LINES)]
    epochs = range(1, 1 + min(run.last_epoch for run in runs))
    found = [{line["epoch"]: factor * line[field] for line in run.evaluations} for run in runs]
    values = np.array([[each.get(epoch, np.nan) for epoch in epochs] for each in found])
    mean, every = values.mean(axis=0), max(1, len(epochs) // 10)
    marks: dict[str, Any] = {"marker": _MARKERS[index % len(_MARKERS)], "markersize": 3.5, "markevery": every}
    axis.plot(epochs, mean, color=color, linestyle=style, linewidth=1.2, **marks)
    if len(runs) > 1:
        axis.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=color, alpha=0.15, linewidth=0)
    return values[:, len(epochs) // 4 :].ravel()

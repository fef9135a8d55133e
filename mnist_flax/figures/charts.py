"""Charts of one run: how it learned, what it gets wrong, how sure it is, what its first layer looks at."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mnist_flax.figures.axes import COLORS, open_figure, open_grid, save
from mnist_flax.figures.pictures import largest_units, mistakes, mosaic
from mnist_flax.metrics import calibration, evaluation_report

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def curves(history: list[dict[str, Any]], eval_split: str) -> "Figure":
    """Loss and accuracy by epoch, in training and on the evaluation split, from the lines of `metrics.jsonl`."""
    figure, axes = open_grid("Training", 1, 2, 8, 3.6)
    figure.set_layout_engine(None)  # computing one takes as long as drawing, and `train` waits for it
    figure.subplots_adjust(0.085, 0.14, 0.985, 0.83, 0.2)
    said = {"train": "train (dropout on, mean over the epoch)", "eval": f"{eval_split} (after it)"}
    shown = (("loss", 1, "loss with L2 penalty (nats)"), ("accuracy", 100, "accuracy (%)"))
    for axis, (name, factor, label) in zip(axes, shown, strict=True):
        for split, color, style in (("train", COLORS[1], "o--"), ("eval", COLORS[2], "s-")):
            lines = [line for line in history if line["split"] == split]
            epochs, values = [line["epoch"] for line in lines], [factor * line[name] for line in lines]
            axis.plot(epochs, values, style, color=color, markersize=4 if len(lines) < 40 else 0, label=said[split])
        axis.locator_params(axis="x", integer=True)
        axis.set(xlabel="epoch", ylabel=label)
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, fontsize=9, ncols=2, loc=(0.25, 0.86))
    return figure


def evaluation_figures(
    directory: Path,
    images: np.ndarray,
    labels: np.ndarray,
    logits: np.ndarray,
    first_layer: np.ndarray | None,
    names: list[str],
) -> None:
    """Write confusion.png, mistakes.png, reliability.png and weights.png into a directory, created if it is missing.

    mistakes.png is written if there are any; an older one is removed.
    Images are uint8 [N, H, W, C], labels int [N], logits float [N, classes]; `first_layer` is float [units, H, W, C],
    the incoming weights of the first layer's units, or None for an ensemble, which has no weights.png.
    """
    directory.mkdir(exist_ok=True)
    matrix = np.asarray(evaluation_report(logits, labels)["confusion_matrix"])
    save(confusion(matrix, names), directory / "confusion.png")
    if (picture := mistakes(images, labels, logits, names)) is None:
        (directory / "mistakes.png").unlink(missing_ok=True)
    else:
        save(picture, directory / "mistakes.png")
    who = "this network" if first_layer is not None else "this ensemble"
    save(reliability(logits, labels, who), directory / "reliability.png")
    if first_layer is not None:
        save(weights(first_layer), directory / "weights.png")


def confusion(matrix: np.ndarray, names: list[str]) -> "Figure":
    """Counts by truth and prediction; the shade is the share of the row, and the diagonal is white."""
    size = min(max(5.0, 0.5 * len(names) + 1), 40.0)  # inches: a thousand classes still fit into memory
    figure, axis = open_figure("Confusion: how many of each class are taken for which", size, size)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    np.fill_diagonal(share, 0)
    axis.grid(visible=False)
    axis.imshow(share, cmap="Greys", vmin=0, vmax=max(float(share.max()), 1e-9) * 1.6)
    for row, column in np.argwhere(matrix):
        weight = "bold" if row == column else "normal"
        axis.text(column, row, f"{matrix[row, column]}", ha="center", va="center", size=8, weight=weight)
    rotation = 90 if max(map(len, names)) > 2 else 0
    axis.set_xticks(range(len(names)), names, rotation=rotation, parse_math=False)  # a name may hold dollar signs
    axis.set_yticks(range(len(names)), names, parse_math=False)
    axis.set(xlabel="prediction", ylabel="truth")
    return figure


def reliability(logits: np.ndarray, labels: np.ndarray, who: str = "this network", bins: int = 15) -> "Figure":
    """Accuracy against confidence in bins of equal width, and each bin's size (Guo et al., ICML 2017, figure 1)."""
    binned = calibration(logits, labels, bins)
    title = f"Reliability: expected calibration error {binned.error():.4f}; points of 10 examples or more"
    figure, axes = open_grid(title, 2, 1, 5, 5.6, [3, 1])
    some, middle = binned.examples >= 10, (np.arange(bins) + 0.5) / bins
    means = [sums[some] / binned.examples[some] for sums in (binned.confidence, binned.correct)]
    axes[0].plot([0, 1], [0, 1], "--", color="0.5", label="confidence = accuracy")
    axes[0].plot(*means, "o-", color=COLORS[2], label=who)
    axes[0].set(ylabel="share that is right", xlim=(0, 1), ylim=(0, 1.02))
    axes[0].legend(frameon=False, loc="lower right")
    axes[1].bar(middle, binned.examples, 0.9 / bins, color=COLORS[2])
    axes[1].set(xlabel="confidence: probability of the prediction", ylabel="examples", xlim=(0, 1), yscale="log")
    return figure


def weights(first_layer: np.ndarray) -> "Figure":
    """The incoming weights of the 64 first-layer units with the largest norm, each as an image on one scale."""
    pictures, limit = largest_units(np.asarray(first_layer))
    figure, axis = open_figure(f"Weights of {len(pictures)} of {len(first_layer)} first-layer units", 6.4, 7.1)
    axis.set_axis_off()
    shown = axis.imshow(mosaic(pictures, 8, np.nan), cmap="PuOr", vmin=-limit, vmax=limit)
    figure.colorbar(shown, ax=axis, shrink=0.5, location="bottom", label="weight", aspect=40, pad=0.02)
    return figure

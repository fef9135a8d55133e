"""The figures of a single run: what it gets wrong, how sure it is, what it looks at.

evaluation_figures(directory, images, labels, logits, kernel, names)  # confusion, mistakes, reliability, weights
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mnist_flax.canvas import COLORS, open_figure, open_grid, save
from mnist_flax.metrics import report, softmax

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def evaluation_figures(
    directory: Path, images: np.ndarray, labels: np.ndarray, logits: np.ndarray, kernel: np.ndarray, names: list[str]
) -> None:
    """Write confusion.png, mistakes.png, reliability.png and weights.png.

    Args:
      directory: where to; made if it is missing.
      images: uint8 [N, H, W, C].
      labels: int [N].
      logits: float [N, classes].
      kernel: float [H * W * C, units], of the first layer.
      names: of the classes.
    """
    directory.mkdir(exist_ok=True)
    save(confusion(np.asarray(report(logits, labels)["confusion_matrix"]), names), directory / "confusion.png")
    save(mistakes(images, labels, logits, names), directory / "mistakes.png")
    save(reliability(logits, labels), directory / "reliability.png")
    save(weights(kernel, images.shape[1:]), directory / "weights.png")


def confusion(matrix: np.ndarray, names: list[str]) -> "Figure":
    """Counts by truth and prediction; the shade is the share of the row, the diagonal left white."""
    size = max(5.0, 0.5 * len(names) + 1)
    figure, axis = open_figure("Confusion: how many of each class are taken for which", size, size)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    np.fill_diagonal(share, 0)
    axis.grid(visible=False)
    axis.imshow(share, cmap="Greys", vmin=0, vmax=max(float(share.max()), 1e-9) * 1.6)
    for row, column in np.argwhere(matrix):
        weight = "bold" if row == column else "normal"
        axis.text(column, row, f"{matrix[row, column]}", ha="center", va="center", size=8, weight=weight)
    axis.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 2 else 0)
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel="prediction", ylabel="truth")
    return figure


def mistakes(images: np.ndarray, labels: np.ndarray, logits: np.ndarray, names: list[str]) -> "Figure":
    """The 25 images that are most confidently wrong, with prediction, its probability, and truth."""
    predicted, confidence = logits.argmax(axis=1), softmax(logits).max(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:25]
    title = f"Most confidently wrong: {len(worst)} of {len(wrong)} mistakes among {len(labels):,}"
    figure, axes = open_grid(title, 5, 5, 6.4, 7.6)
    for axis, index in zip(axes, worst, strict=False):
        said = f"{names[predicted[index]]} ({confidence[index]:.1%})\ntruth: {names[labels[index]]}"
        _show(axis, images[index], said, size=8)
    return figure


def reliability(logits: np.ndarray, labels: np.ndarray, bins: int = 15) -> "Figure":
    """Accuracy against confidence in bins of equal width (Guo et al., ICML 2017, figure 1), and where they are."""
    probabilities = softmax(logits)
    confidence, hit = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(which, minlength=bins)
    error = report(logits, labels, bins)["expected_calibration_error"]
    title = f"Reliability: expected calibration error {error:.4f}; points of 10 examples or more"
    figure, axes = open_grid(title, 2, 1, 5, 5.6, [3, 1])
    some, middle = count >= 10, (np.arange(bins) + 0.5) / bins
    means = [np.bincount(which, values, bins)[some] / count[some] for values in (confidence, hit)]
    axes[0].plot([0, 1], [0, 1], "--", color="0.5", label="as sure as it is right")
    axes[0].plot(*means, "o-", color=COLORS[2], label="this network")
    axes[0].set(ylabel="share that is right", xlim=(0, 1), ylim=(0, 1.02))
    axes[0].legend(frameon=False, loc="lower right")
    axes[1].bar(middle, count, 0.9 / bins, color=COLORS[2])
    axes[1].set(xlabel="confidence: probability of the prediction", ylabel="examples", xlim=(0, 1), yscale="log")
    for axis in axes:
        axis.grid(color="0.9")
        axis.set_axisbelow(True)
    return figure


def weights(kernel: np.ndarray, shape: tuple[int, ...]) -> "Figure":
    """The incoming weights of the 64 first-layer units with the largest norm, each as an image on one scale."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    largest = np.argsort(-np.linalg.norm(kernel, axis=0), kind="stable")[:64]
    limit = float(np.percentile(np.abs(kernel[:, largest]), 99.5))
    figure, axes = open_grid(f"Weights of {len(largest)} of {kernel.shape[1]} first-layer units", 8, 8, 6.4, 6.9)
    for axis, unit in zip(axes, largest, strict=False):
        image = kernel[:, unit].reshape(shape).mean(axis=-1)  # over the channels
        axis.imshow(image, cmap="PuOr", vmin=-limit, vmax=limit)
    scale = ScalarMappable(Normalize(-limit, limit), "PuOr")
    figure.colorbar(scale, ax=axes.tolist(), shrink=0.5, location="bottom", label="weight", aspect=40)
    return figure


def _show(axis: "Axes", image: np.ndarray, title: str, size: float = 10) -> None:
    axis.imshow(image.squeeze(), cmap="gray" if image.shape[-1] == 1 else None, vmin=0, vmax=255)
    axis.set_title(title, size=size)

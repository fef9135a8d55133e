"""The figures of a single run: its data, how it learned, what it gets wrong, how sure it is, what it looks at.

save(digits(images, labels, names), directory / "digits.png")
evaluation_figures(directory, images, labels, logits, kernel, names)  # confusion, mistakes, reliability, weights
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mnist_flax.canvas import COLORS, open_figure, open_grid, save
from mnist_flax.metrics import report, softmax

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

_GAP = 3  # pixels between pictures


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


def digits(images: np.ndarray, labels: np.ndarray, names: list[str]) -> "Image":
    """The first nine training images with their labels: the tutorial's first picture."""
    return gallery("The first training images", images[:9], [names[label] for label in labels[:9]], 3)


def curves(history: list[dict[str, Any]], eval_split: str) -> "Figure":
    """Loss and accuracy by epoch, in training and on the evaluation split, from the lines of `metrics.jsonl`."""
    figure, axes = open_grid("Training", 1, 2, 8, 3.6)
    figure.set_layout_engine(None)  # to compute one takes as long as to draw, and `train` waits for it
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
        axis.grid(color="0.9")
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, fontsize=9, ncols=2, loc=(0.25, 0.86))
    return figure


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


def mistakes(images: np.ndarray, labels: np.ndarray, logits: np.ndarray, names: list[str]) -> "Image":
    """The 25 images that are most confidently wrong, with prediction, its probability, and truth."""
    predicted, confidence = logits.argmax(axis=1), softmax(logits).max(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:25]
    title = f"Most confidently wrong: {len(worst)} of {len(wrong)} mistakes among {len(labels):,}"
    said = [f"{names[predicted[i]]} ({confidence[i]:.1%})\ntruth: {names[labels[i]]}" for i in worst]
    return gallery(title, images[worst], said, 5)


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
    pictures, limit = unit_pictures(kernel, shape)
    figure, axis = open_figure(f"Weights of {len(pictures)} of {kernel.shape[1]} first-layer units", 6.4, 7.1)
    axis.set_axis_off()
    shown = axis.imshow(mosaic(pictures, 8, np.nan), cmap="PuOr", vmin=-limit, vmax=limit)
    figure.colorbar(shown, ax=axis, shrink=0.5, location="bottom", label="weight", aspect=40, pad=0.02)
    return figure


def unit_pictures(kernel: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, float]:
    """The weights of the 64 units with the largest norm as images [64, H, W], and the end of a scale for them."""
    largest = np.argsort(-np.linalg.norm(kernel, axis=0), kind="stable")[:64]
    limit = float(np.percentile(np.abs(kernel[:, largest]), 99.5))
    return kernel[:, largest].T.reshape(-1, *shape).mean(axis=-1), limit  # over the channels


def mosaic(pictures: np.ndarray, columns: int, fill: float) -> np.ndarray:
    """Pictures [N, H, W] side by side, row by row, in one [rows, columns]."""
    n, height, width = pictures.shape
    rows = -(-n // columns)
    padded = np.full((rows * columns, height + _GAP, width + _GAP), fill, pictures.dtype)
    padded[:n, :height, :width] = pictures
    grid = padded.reshape(rows, columns, height + _GAP, width + _GAP).swapaxes(1, 2)
    return grid.reshape(rows * (height + _GAP), columns * (width + _GAP))


def gallery(title: str, images: np.ndarray, captions: list[str], columns: int) -> "Image":
    """Images uint8 [N, H, W, C] with a line or two below each. By Pillow: matplotlib takes several times as long."""
    from PIL import Image, ImageDraw, ImageFont

    side, gap, top = 140, 20, 60
    lines = [line for caption in captions for line in caption.split("\n")]
    sizes = (size for size in range(20, 8, -1) if _longest(lines, size) < side + gap)
    font = ImageFont.load_default(next(sizes, 8))
    height = side + 54 + gap
    mode = "L" if images.shape[-1] == 1 else "RGB"
    sheet = Image.new(mode, (gap + columns * (side + gap), top + -(-len(images) // columns) * height), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((sheet.width / 2, gap), title, "black", ImageFont.load_default(22 if columns > 3 else 20), anchor="ma")
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x, y = gap + index % columns * (side + gap), top + index // columns * height
        picture = Image.fromarray(image.squeeze()).resize((side, side), Image.Resampling.NEAREST)
        sheet.paste(picture, (x, y))
        draw.text((x + side / 2, y + side + 4), caption, "black", font, anchor="ma", align="center")
    return sheet


def _longest(lines: list[str], size: int) -> float:
    from PIL import ImageFont

    return max(map(ImageFont.load_default(size).getlength, lines), default=0)

"""Draw images in rows and columns: digits with captions, mistakes, and the first layer's weights."""

from typing import TYPE_CHECKING

import numpy as np

from mnist_flax.metrics import softmax

if TYPE_CHECKING:
    from PIL.Image import Image

_GAP = 3  # pixels between pictures


def digits(images: np.ndarray, labels: np.ndarray, names: list[str]) -> "Image":
    """The first nine training images with their labels: the tutorial's first picture."""
    return gallery("The first training images", images[:9], [names[label] for label in labels[:9]], 3)


def mistakes(images: np.ndarray, labels: np.ndarray, logits: np.ndarray, names: list[str]) -> "Image | None":
    """The 25 images that are most confidently wrong, with prediction, its probability, and truth; None without any."""
    predicted, confidence = logits.argmax(axis=1), softmax(logits).max(axis=1)
    if not len(wrong := np.flatnonzero(predicted != labels)):
        return None
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:25]
    title = f"Most confidently wrong: {len(worst)} of {len(wrong)} mistakes among {len(labels):,}"
    said = [f"{names[predicted[i]]} ({confidence[i]:.1%})\ntruth: {names[labels[i]]}" for i in worst]
    return gallery(title, images[worst], said, 5)


def largest_units(pictures: np.ndarray) -> tuple[np.ndarray, float]:
    """The 64 units with the largest norm of their incoming weights, and the 99.5 % quantile of these weights' size.

    Takes float [units, H, W, C]; gives float [64, H, W], the mean over the channels, and the end of a colour scale.
    """
    flat = pictures.reshape(len(pictures), -1)
    largest = np.argsort(-np.linalg.norm(flat, axis=1), kind="stable")[:64]
    limit = float(np.percentile(np.abs(flat[largest]), 99.5))
    return pictures[largest].mean(axis=-1), limit


def mosaic(pictures: np.ndarray, columns: int, fill: float) -> np.ndarray:
    """Put pictures [N, H, W] side by side, row by row, into one array [height, width], with gaps of value `fill`."""
    n, height, width = pictures.shape
    rows = -(-n // columns)
    padded = np.pad(pictures, ((0, rows * columns - n), (0, _GAP), (0, _GAP)), constant_values=fill)
    grid = padded.reshape(rows, columns, height + _GAP, width + _GAP).swapaxes(1, 2)
    return grid.reshape(rows * (height + _GAP), columns * (width + _GAP))


def gallery(title: str, images: np.ndarray, captions: list[str], columns: int) -> "Image":
    """Images uint8 [N, H, W, C] with one or two lines below each. By Pillow: matplotlib takes several times as long."""
    from PIL import Image, ImageDraw, ImageFont

    side, gap, top = 140, 20, 60
    lines = [line for caption in captions for line in caption.split("\n")]
    fonts = map(ImageFont.load_default, range(20, 8, -1))
    fitting = (font for font in fonts if max(map(font.getlength, lines), default=0) < side + gap)
    font = next(fitting, ImageFont.load_default(8))
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

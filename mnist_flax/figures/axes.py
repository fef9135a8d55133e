"""Open a matplotlib figure, and save it as PNG. No pyplot: it would keep global state and may need a display."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_flax.process.files import replacing

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

COLORS = ["#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#777777"]  # Okabe & Ito's


def open_figure(title: str, width: float, height: float) -> "tuple[Figure, Axes]":
    """A figure, in inches, with one pair of axes."""
    figure, (axes,) = open_grid(title, 1, 1, width, height)
    return figure, axes


def open_grid(
    title: str, rows: int, columns: int, width: float, height: float, heights: Sequence[float] | None = None
) -> "tuple[Figure, np.ndarray]":
    """A figure, in inches, with a flat array of axes, each with a grid below what is drawn."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(textwrap.fill(title, int(13 * width)), size=10)
    axes = figure.subplots(rows, columns, height_ratios=heights, squeeze=False).ravel()
    for each in axes:
        each.grid(color="0.9")
        each.set_axisbelow(True)
    return figure, axes


def save(figure: "Figure | Image", path: Path) -> Path:
    """Write a matplotlib figure or a Pillow image as PNG; the file appears complete, by one rename."""
    from PIL import Image

    write = figure.save if isinstance(figure, Image.Image) else figure.savefig
    with replacing(path) as scratch:
        write(scratch, format="png")
    return path

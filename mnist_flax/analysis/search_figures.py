"""Draw the figures that only a search has: parallel coordinates, and the importance of each hyperparameter."""

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from mnist_flax.analysis.labels import ACCURACY, axis_of, color_scale, left_out, scale_of, shown, spoken
from mnist_flax.analysis.summaries import Levels, Summary
from mnist_flax.figures.axes import COLORS, open_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Search(NamedTuple):
    """What a search knows about its hyperparameters, by name, besides its results."""

    importances: Mapping[str, float]  # shares of the variance, from 0 to 1
    logarithmic: Mapping[str, bool]  # whether a number is sampled on a logarithmic scale


def parallel(selection: list[Summary], levels: Levels, logarithmic: Mapping[str, bool]) -> "Figure":
    """A line for each configuration through its values and its accuracy; the best is drawn last, and darkest."""
    import numpy as np
    from matplotlib.collections import LineCollection

    known, (norm, extend) = [s for s in reversed(selection) if s.n], color_scale(selection)
    accuracies = [max(100 * s.mean, norm.vmin or 0.0) for s in known if s.mean is not None]
    title = f"{len(known)} configurations" + f", the worst at {norm.vmin:.2f} % or below" * (extend == "min")
    figure, axes = open_figure(title + left_out(selection), 2.4 + 1.4 * len(levels), 4.5)
    axes.grid(visible=False)
    paths = np.zeros((len(known), len(levels) + 1, 2))  # [configuration, axis, x and y]
    scales = {name: scale_of(values, logarithmic.get(name)) for name, values in levels.items()}
    columns = [(values, [s.overrides.get(name) for s in known], scales[name]) for name, values in levels.items()]
    for x, (values, of, scale) in enumerate([*columns, ([norm.vmin, norm.vmax], accuracies, "linear")]):
        place, ticks = axis_of(values, scale)
        paths[:, x] = [(x, place(value)) for value in of]
        axes.axvline(x, color="0.3", linewidth=1)
        for tick in ticks:
            axes.plot([x - 0.02, x + 0.02], [place(tick)] * 2, color="0.3", linewidth=1)
            box = {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.8}
            axes.text(x + 0.04, place(tick), shown(tick), size=7, va="center", zorder=5, bbox=box)
    widths = np.linspace(0.5, 1.8, len(paths))
    lines = LineCollection(list(paths), cmap="cividis_r", norm=norm, array=accuracies, linewidths=widths, zorder=3)
    axes.add_collection(lines)
    names = [textwrap.fill(spoken(name, scale), 16) for name, scale in scales.items()]
    axes.set_xticks(range(len(names) + 1), [*names, "validation\naccuracy (%)"])
    axes.set(xlim=(-0.1, len(names) + 0.4), ylim=(-0.04, 1.04), yticks=[])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure.colorbar(lines, label=ACCURACY, extend=extend)
    return figure


def importance(importances: Mapping[str, float]) -> "Figure":
    """A bar for each hyperparameter, the longest on top."""
    ordered = sorted(importances.items(), key=lambda item: item[1])
    figure, axes = open_figure("Importance of the hyperparameters", 6.5, 1.2 + 0.3 * len(ordered))
    bars = axes.barh([spoken(name) for name, _ in ordered], [100 * share for _, share in ordered], color=COLORS[2])
    axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    axes.set(xlabel="importance (%)", xlim=(0, 112 * max(importances.values()) or 1))
    axes.grid(visible=False, axis="y")
    return figure

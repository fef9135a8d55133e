"""Figures of a sweep, as PNG, from the rows of results.jsonl: `sweep_figures(directory, rows)`.

Members that diverged are left out of means, and counted in the figure. Nothing is shown by colour alone.
"""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_flax.analysis.adapt_figures import lineages, rungs
from mnist_flax.analysis.labels import ACCURACY, aligned, color_scale, described, left_out, scale_of, shown, spoken
from mnist_flax.analysis.search_figures import Search, importance, parallel
from mnist_flax.analysis.summaries import Levels, Row, Summary, by_configuration, factors, spread, summarize
from mnist_flax.figures.axes import COLORS, open_figure, save

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

_MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*"]
_LINES: list[Any] = ["-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (7, 3))]
_ALIGNED: dict[str, Any] = {"family": "monospace", "size": 7}
_MOST = 40


def sweep_figures(directory: Path, rows: list[Row], search: Search | None = None) -> list[Path]:
    """Write the figures that make sense for these rows, each by one rename, and return their paths.

    `search` is None where the members are a grid.
    """
    return [save(figure, directory / f"{name}.png") for name, figure in sweep_drawings(rows, search).items()]


def sweep_drawings(rows: list[Row], search: Search | None = None) -> dict[str, "Figure"]:
    """Draw what `sweep_figures` writes, by name."""
    levels, summaries = factors(rows), summarize(rows)
    selection = [s for s in summaries if s.stage == "selection"]
    known, methods = [s for s in selection if s.n], {s.method for s in selection}
    mostly_full = 2 * len(selection) >= math.prod(map(len, levels.values()))
    drawn = {"curves": _curves(selection, levels, rows)}
    if tree := lineages(rows):  # of members that change their hyperparameters, no other figure would be true
        return {"lineages": tree}
    drawn["rungs"] = rungs(rows)
    if search:
        drawn["parallel"] = parallel(selection, levels, search.logarithmic) if levels and len(known) > 1 else None
        drawn["importance"] = importance(search.importances) if search.importances else None
    elif known and len(methods) == len(levels) == 1:
        drawn["factor"] = _factor(selection, levels)
    elif known and len(methods) == 1 and len(levels) == 2 and mostly_full:
        drawn["heatmap"] = _heatmap(selection, levels)
    elif known and len(selection) > 1:
        drawn["cells"] = _cells(selection, levels)
    drawn["final"] = _final(summaries, levels, rows)
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _curves(selection: list[Summary], levels: Levels, rows: list[Row]) -> "Figure | None":
    """Validation accuracy by epoch of the best, or each method's best, with 95 % bands; None for a single epoch."""
    groups, known = by_configuration(rows), [s for s in selection if s.n]
    of_methods = sorted({s.method: s for s in reversed(known)}.values(), key=known.index)
    best = (of_methods if len(of_methods) > 1 else known)[: len(COLORS)]
    curves = [_by_epoch(groups[s.key]) for s in best]
    if max(map(len, curves), default=0) < 2:
        return None
    header, *labels = aligned(best, levels)
    title = f"Best {len(best)} of {len(known)} configurations" if len(best) < len(known) else "All configurations"
    title = "Best configuration of each method" if len(of_methods) > 1 else title
    title += ", with 95 % bands" * any(s.n > 2 for s in best) + left_out(selection)
    figure, axes = open_figure(title, max(6.5, 1 + 0.06 * len(header)), 4 + 0.15 * len(best))
    axes.plot([], [], linestyle="none", label=header)
    late: list[float] = []
    for curve, label, color, marker, line in zip(curves, labels, COLORS, _MARKERS, _LINES, strict=False):
        epochs, (mean, low, high) = list(curve), _percent([spread(values) for values in curve.values()])
        axes.plot(epochs, mean, color=color, marker=marker, markersize=4, linestyle=line, label=label)
        if banded := min(map(len, curve.values())) > 2:  # of two, an interval is wider than the figure
            axes.fill_between(epochs, low, high, color=color, alpha=0.12, linewidth=0)
        late += (low if banded else mean)[len(low) // 4 :].tolist()
    axes.locator_params(axis="x", integer=True)
    axes.set(xlabel="epoch", ylabel=ACCURACY, ylim=(min(late), None))  # the steep first quarter may leave the picture
    figure.legend(loc="outside lower left", prop=_ALIGNED, frameon=False, handlelength=4)
    return figure


def _factor(selection: list[Summary], levels: Levels) -> "Figure":
    """Mean and 95 % interval against the one factor: a line and a band of numbers, points of categories."""
    [(name, values)] = levels.items()
    known = sorted((s for s in selection if s.n), key=lambda s: values.index(s.overrides.get(name)))
    mean, low, high = _percent([s[5:9] for s in known])
    where = [f"{s.diverged} at {shown(s.overrides.get(name))}" for s in selection if s.diverged]
    title = f"Mean and 95 % interval{left_out(selection)}" + (f" ({', '.join(where)})" if where else "")
    scale = scale_of(values)
    categories = scale == "categories"
    figure, axes = open_figure(title, max(6.5, 1 + 0.9 * len(values) * categories), 4)
    if categories:
        x = [values.index(s.overrides.get(name)) for s in known]
        axes.errorbar(x, mean, [mean - low, high - mean], fmt="o", color=COLORS[2], capsize=4)
        axes.set_xticks(range(len(values)), [textwrap.fill(shown(value), 12) for value in values])
        axes.set_xlim(-0.5, len(values) - 0.5)
    else:
        x = [s.overrides[name] for s in known]
        axes.plot(x, mean, marker="o", color=COLORS[2])
        axes.fill_between(x, low, high, color=COLORS[2], alpha=0.2, linewidth=0)
        axes.set_xscale(scale)
    axes.set(xlabel=spoken(name, scale), ylabel=ACCURACY)
    return figure


def _heatmap(selection: list[Summary], levels: Levels) -> "Figure":
    """The mean of each pair of levels, as a colour and as a number."""
    import numpy as np
    from matplotlib import colormaps

    (down, rows), (across, columns) = levels.items()
    figure, axes = open_figure(f"Mean {ACCURACY}{left_out(selection)}", 2.5 + 0.8 * len(columns), 1.5 + 0.5 * len(rows))
    axes.grid(visible=False)
    norm, extend = color_scale(selection)
    colors = colormaps["cividis"].with_extremes(bad="0.9")
    means = np.full((len(rows), len(columns)), np.nan)
    for s in selection:
        i, j = rows.index(s.overrides.get(down)), columns.index(s.overrides.get(across))
        means[i, j] = math.nan if s.mean is None else 100 * s.mean
        lines = [f"{means[i, j]:.2f}"] * (s.n > 0) + [f"{s.diverged} diverged"] * (s.diverged > 0)
        dark = s.n > 0 and sum(colors(norm(means[i, j]))[:3]) < 1.5
        axes.text(j, i, "\n".join(lines), ha="center", va="center", size=8, color="white" if dark else "black")
    image = axes.imshow(means, cmap=colors, norm=norm, aspect="auto")
    axes.set_xticks(range(len(columns)), [textwrap.fill(shown(value), 11) for value in columns])
    axes.set_yticks(range(len(rows)), [textwrap.fill(shown(value), 16) for value in rows])
    axes.set(xlabel=spoken(across), ylabel=spoken(down))
    figure.colorbar(image, label=f"mean {ACCURACY}", extend=extend)
    return figure


def _cells(selection: list[Summary], levels: Levels) -> "Figure":
    """A line for each configuration, with its mean and 95 % interval; the best is on top."""
    best = selection[:_MOST]
    header, *labels = aligned(best, levels)
    title = f"Best {_MOST} of {len(selection)} configurations: mean" if len(best) < len(selection) else "Mean"
    title += f" and 95 % interval{left_out(selection)}"
    figure, axes = open_figure(title, 4.5 + 0.06 * len(header), 1.3 + 0.19 * len(best))
    mean, low, high = _percent([s[5:9] for s in best if s.n])
    axes.errorbar(mean, range(len(mean)), xerr=[mean - low, high - mean], fmt="o", color=COLORS[2], capsize=3)
    axes.set_yticks(range(-1, len(best)), [header, *labels], **_ALIGNED)
    axes.set_ylim(len(best) - 0.5, -1.5)
    axes.tick_params(axis="y", length=0)
    axes.set(xlabel=ACCURACY)
    return figure


def _final(summaries: list[Summary], levels: Levels, rows: list[Row]) -> "Figure | None":
    """Validation and test accuracy of each chosen configuration: the seeds, their mean and its 95 % interval."""
    final, groups = [s for s in summaries if s.stage == "final"], by_configuration(rows)
    if not any(s.n for s in final):
        return None
    figure, axes = open_figure("The chosen: each seed, mean and 95 % interval", 7, 1.6 + 0.75 * len(final))
    stages = (("selection", "validation", COLORS[2], "o", -0.2), ("final", "test", COLORS[1], "s", 0.2))
    for stage, label, color, marker, up in stages:
        seeds = [groups.get((stage, *s.key[1:]), []) for s in final]
        values = [[row["value"] for row in group if row["value"] is not None] for group in seeds]
        for y, of in enumerate(values):
            axes.plot([100 * v for v in of], [y + up + 0.13] * len(of), "o", color=color, alpha=0.5, markersize=3)
        mean, low, high = _percent([spread(of) for of in values if of])
        y = [y + up for y, of in enumerate(values) if of]
        axes.errorbar(mean, y, xerr=[mean - low, high - mean], fmt=marker, color=color, capsize=3, label=label)
    names = [(s.method or described(s.overrides, levels)) + left_out([s]) for s in final]
    axes.set_yticks(range(len(final)), [textwrap.fill(name, 40) for name in names], size=8)
    axes.set_ylim(len(final) - 0.5, -0.5)
    axes.set(xlabel="accuracy (%)")
    figure.legend(loc="outside lower right", ncols=2, frameon=False)
    return figure


def _by_epoch(group: list[Row]) -> dict[int, list[float]]:
    """The members' validation accuracies at each epoch."""
    curve: dict[int, list[float]] = {}
    for line in (line for row in group if row["value"] is not None for line in row["history"]):
        if line["split"] == "eval":
            curve.setdefault(line["epoch"], []).append(line["accuracy"])
    return curve


def _percent(spreads: Sequence[Sequence[float | None]]) -> "np.ndarray":
    """Means and the ends of their intervals, [3, n], in percent; the interval of a single value has no width."""
    import numpy as np

    known = [(mean, low, high) for mean, _, low, high in spreads if mean is not None]
    filled = [[mean if x is None else x for x in (mean, low, high)] for mean, low, high in known]
    return 100 * np.array(filled, float).reshape(-1, 3).T

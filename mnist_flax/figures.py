"""Figures of a sweep, as PNG.

    sweep_figures(directory, rows, searched=False)  # curves.png, heatmap.png, ..., final.png: those that the rows give

The rows are those of `report`. Members that diverged are left out of means, and counted in the figure. Markers, line
styles and positions tell what colours tell. No pyplot: nothing global is touched, and no display is needed.
"""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_flax.report import Row, Summary, described, factors, key_of, members, shown, spread, summarize
from mnist_flax.writer import scratch_of

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

_COLORS = ["#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#777777"]  # Okabe & Ito's
_MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*"]
_LINES: list[Any] = ["-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (7, 3))]
_ALIGNED: dict[str, Any] = {"family": "monospace", "size": 7}
_ACCURACY = "validation accuracy (%)"
_MOST = 40

Levels = dict[str, list[Any]]


def sweep_figures(
    directory: Path, rows: list[Row], searched: bool, importances: Mapping[str, float] | None = None
) -> list[Path]:
    """Write the figures that make sense for these rows, each by one rename, and return their paths.

    Args:
      directory: where to; it exists.
      rows: one a member.
      searched: whether the overrides come from a search space, not from a grid.
      importances: share of each hyperparameter of a search, from 0 to 1.
    """
    drawings = sweep_drawings(rows, searched, importances or {})
    return [_save(figure, directory / f"{name}.png") for name, figure in drawings.items()]


def sweep_drawings(rows: list[Row], searched: bool, importances: Mapping[str, float]) -> dict[str, "Figure"]:
    """Draw what `sweep_figures` writes, by name."""
    levels, summaries = factors(rows), summarize(rows)
    selection = [s for s in summaries if s.stage == "selection"]
    known, methods = [s for s in selection if s.n], {s.method for s in selection}
    mostly_full = 2 * len(selection) >= math.prod(map(len, levels.values()))
    drawn = {"curves": _curves(selection, levels, rows)}
    if searched:
        drawn["parallel"] = _parallel(selection, levels) if levels and len(known) > 1 else None
        drawn["importance"] = _importance(importances) if importances else None
    elif known and len(methods) == len(levels) == 1:
        drawn["factor"] = _factor(selection, levels)
    elif known and len(methods) == 1 and len(levels) == 2 and mostly_full:
        drawn["heatmap"] = _heatmap(selection, levels)
    elif known and len(selection) > 1:
        drawn["cells"] = _cells(selection, levels)
    drawn["final"] = _final(summaries, levels, rows)
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _curves(selection: list[Summary], levels: Levels, rows: list[Row]) -> "Figure | None":
    """Validation accuracy by epoch of the best configurations, with 95 % bands; nothing of a single epoch."""
    groups, known = members(rows), [s for s in selection if s.n]
    best = known[: len(_COLORS)]
    header, *labels = _aligned(best, levels)
    title = f"Best {len(best)} of {len(known)} configurations" if len(best) < len(known) else "Mean of the seeds"
    title += ", with 95 % bands" * any(s.n > 1 for s in best) + _left_out(selection)
    figure, axes = _figure(title, max(6.5, 1 + 0.06 * len(header)), 4 + 0.15 * len(best))
    axes.plot([], [], linestyle="none", label=header)
    last = 0
    for s, label, color, marker, line in zip(best, labels, _COLORS, _MARKERS, _LINES, strict=False):
        by_epoch: dict[int, list[float]] = {}
        for row in groups[key_of(*s[:3])]:
            for entry in row["history"] if row["value"] is not None else ():
                if entry["split"] == "eval":
                    by_epoch.setdefault(entry["epoch"], []).append(entry["accuracy"])
        mean, low, high = _percent([spread(values) for values in by_epoch.values()])
        axes.plot(list(by_epoch), mean, color=color, marker=marker, markersize=4, linestyle=line, label=label)
        axes.fill_between(list(by_epoch), low, high, color=color, alpha=0.12, linewidth=0)
        last = max(last, *by_epoch)
    axes.locator_params(axis="x", integer=True)
    axes.set(xlabel="epoch", ylabel=_ACCURACY)
    figure.legend(loc="outside lower left", prop=_ALIGNED, frameon=False, handlelength=4)
    return figure if last > 1 else None


def _factor(selection: list[Summary], levels: Levels) -> "Figure":
    """Mean and 95 % interval against the one factor: a line and a band of numbers, points of categories."""
    [(name, values)] = levels.items()
    known = sorted((s for s in selection if s.n), key=lambda s: values.index(s.overrides.get(name)))
    mean, low, high = _percent([s[5:9] for s in known])
    where = [f"{s.diverged} at {shown(s.overrides.get(name))}" for s in selection if s.diverged]
    title = f"Mean and 95 % interval{_left_out(selection)}" + (f" ({', '.join(where)})" if where else "")
    categories = _scale(values) == "categories"
    figure, axes = _figure(title, max(6.5, 1 + 0.9 * len(values) * categories), 4)
    if categories:
        x = [values.index(s.overrides.get(name)) for s in known]
        axes.errorbar(x, mean, [mean - low, high - mean], fmt="o", color=_COLORS[2], capsize=4)
        axes.set_xticks(range(len(values)), [textwrap.fill(shown(value), 12) for value in values])
        axes.set_xlim(-0.5, len(values) - 0.5)
    else:
        x = [s.overrides[name] for s in known]
        axes.plot(x, mean, marker="o", color=_COLORS[2])
        axes.fill_between(x, low, high, color=_COLORS[2], alpha=0.2, linewidth=0)
        axes.set_xscale(_scale(values))
    axes.set(xlabel=_spoken(name, values), ylabel=_ACCURACY)
    return figure


def _heatmap(selection: list[Summary], levels: Levels) -> "Figure":
    """The mean of each pair of levels, as a colour and as a number."""
    import numpy as np
    from matplotlib import colormaps

    (down, rows), (across, columns) = levels.items()
    figure, axes = _figure(f"Mean {_ACCURACY}{_left_out(selection)}", 2.5 + 0.8 * len(columns), 1.5 + 0.5 * len(rows))
    axes.grid(visible=False)
    norm, colors = _norm(selection), colormaps["cividis"].with_extremes(bad="0.9")
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
    axes.set(xlabel=_spoken(across), ylabel=_spoken(down))
    figure.colorbar(image, label=f"mean {_ACCURACY}", extend="min")
    return figure


def _cells(selection: list[Summary], levels: Levels) -> "Figure":
    """The configurations one below the other, with their 95 % intervals."""
    best = selection[:_MOST]
    header, *labels = _aligned(best, levels)
    title = f"Best {_MOST} of {len(selection)} configurations: mean" if len(best) < len(selection) else "Mean"
    title += f" and 95 % interval{_left_out(selection)}"
    figure, axes = _figure(title, 4.5 + 0.06 * len(header), 1.3 + 0.19 * len(best))
    mean, low, high = _percent([s[5:9] for s in best if s.n])
    axes.errorbar(mean, range(len(mean)), xerr=[mean - low, high - mean], fmt="o", color=_COLORS[2], capsize=3)
    axes.set_yticks(range(-1, len(best)), [header, *labels], **_ALIGNED)
    axes.set_ylim(len(best) - 0.5, -1.5)
    axes.tick_params(axis="y", length=0)
    axes.set(xlabel=_ACCURACY)
    return figure


def _parallel(selection: list[Summary], levels: Levels) -> "Figure":
    """A line for each configuration through its values and its accuracy; the best is drawn last, and darkest."""
    import numpy as np
    from matplotlib.collections import LineCollection

    known, norm = [s for s in reversed(selection) if s.n], _norm(selection)
    accuracies = [max(100 * s.mean, norm.vmin or 0.0) for s in known if s.mean is not None]
    figure, axes = _figure(f"{len(known)} configurations{_left_out(selection)}", 2.4 + 1.4 * len(levels), 4.5)
    axes.grid(visible=False)
    paths = np.zeros((len(known), len(levels) + 1, 2))  # [configuration, axis, x and y]
    columns = [(values, [s.overrides.get(name) for s in known]) for name, values in levels.items()]
    for x, (values, of) in enumerate([*columns, ([norm.vmin, norm.vmax], accuracies)]):
        place, ticks = _axis(values)
        paths[:, x] = [(x, place(value)) for value in of]
        axes.axvline(x, color="0.3", linewidth=1)
        for tick in ticks:
            axes.plot([x - 0.02, x + 0.02], [place(tick)] * 2, color="0.3", linewidth=1)
            box = {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.8}
            axes.text(x + 0.04, place(tick), shown(tick), size=7, va="center", zorder=5, bbox=box)
    widths = np.linspace(0.5, 1.8, len(paths))
    lines = LineCollection(list(paths), cmap="cividis_r", norm=norm, array=accuracies, linewidths=widths, zorder=3)
    axes.add_collection(lines)
    names = [textwrap.fill(_spoken(name, values), 16) for name, values in levels.items()]
    axes.set_xticks(range(len(names) + 1), [*names, "validation\naccuracy (%)"])
    axes.set(xlim=(-0.1, len(names) + 0.4), ylim=(-0.04, 1.04), yticks=[])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure.colorbar(lines, label=_ACCURACY, extend="min")
    return figure


def _importance(importances: Mapping[str, float]) -> "Figure":
    """A bar for each hyperparameter, the longest on top."""
    ordered = sorted(importances.items(), key=lambda item: item[1])
    figure, axes = _figure("Importance of the hyperparameters", 6.5, 1.2 + 0.3 * len(ordered))
    bars = axes.barh([_spoken(name) for name, _ in ordered], [100 * share for _, share in ordered], color=_COLORS[2])
    axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    axes.set(xlabel="importance (%)", xlim=(0, 112 * max(importances.values()) or 1))
    axes.grid(visible=False, axis="y")
    return figure


def _final(summaries: list[Summary], levels: Levels, rows: list[Row]) -> "Figure | None":
    """Validation and test accuracy of each chosen configuration: the seeds, their mean and its 95 % interval."""
    final, groups = [s for s in summaries if s.stage == "final"], members(rows)
    if not any(s.n for s in final):
        return None
    title = f"Each seed; mean and 95 % interval{_left_out(final)}"
    figure, axes = _figure(title, 7, 1.6 + 0.75 * len(final))
    for stage, label, color, marker, up in (
        ("selection", "validation", _COLORS[2], "o", -0.2),
        ("final", "test", _COLORS[1], "s", 0.2),
    ):
        seeds = [groups.get(key_of(stage, s.method, s.overrides), []) for s in final]
        values = [[row["value"] for row in group if row["value"] is not None] for group in seeds]
        for y, of in enumerate(values):
            axes.plot([100 * v for v in of], [y + up + 0.13] * len(of), "|", color=color, alpha=0.7, markersize=5)
        mean, low, high = _percent([spread(of) for of in values if of])
        y = [y + up for y, of in enumerate(values) if of]
        axes.errorbar(mean, y, xerr=[mean - low, high - mean], fmt=marker, color=color, capsize=3, label=label)
    names = [textwrap.fill(f"{s.method}: {described(s.overrides, levels)}".removeprefix(": "), 40) for s in final]
    axes.set_yticks(range(len(final)), names, size=8)
    axes.set_ylim(len(final) - 0.5, -0.5)
    axes.set(xlabel="accuracy (%)")
    figure.legend(loc="outside lower right", ncols=2, frameon=False)
    return figure


def _figure(title: str, width: float, height: float) -> "tuple[Figure, Axes]":
    """Open one, in inches, with one pair of axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(textwrap.fill(title, int(11 * width)), size=10)
    axes = figure.subplots()
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    return figure, axes


def _save(figure: "Figure", path: Path) -> Path:
    """Write a PNG by one rename."""
    scratch = scratch_of(path)
    figure.savefig(scratch, format="png")
    return scratch.replace(path)


def _percent(spreads: Sequence[Sequence[float | None]]) -> "np.ndarray":
    """Means and the ends of their intervals, [3, n], in percent; one value's interval has no width."""
    import numpy as np

    known = [(mean, low, high) for mean, _, low, high in spreads if mean is not None]
    filled = [[mean if x is None else x for x in (mean, low, high)] for mean, low, high in known]
    return 100 * np.array(filled, float).reshape(-1, 3).T


def _norm(summaries: list[Summary]) -> "Normalize":
    """Colours from the best down to the best nine tenths: a few bad members would make all others look alike."""
    import numpy as np
    from matplotlib.colors import Normalize

    means = [100 * s.mean for s in summaries if s.mean is not None]
    return Normalize(float(np.percentile(means, 10)), max(means))


def _scale(values: list[Any]) -> str:
    """How to show a factor's levels: log, linear or categories."""
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return "categories"
    wide = max(values) >= 30 * min((value for value in values if value > 0), default=math.inf)
    # Powers beside a zero, which has no logarithm, are better apart than in a heap; a search has too many for that.
    return "linear" if not wide or min(values) < 0 else "log" if min(values) > 0 else "categories"


def _axis(values: list[Any]) -> tuple[Callable[[Any], float], list[Any]]:
    """Where on an axis from 0 to 1 a value stands, and the ticks."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    scale, low, high = _scale(values), values[0], values[-1]
    if scale == "categories" or low == high:
        return lambda value: values.index(value) / max(1, len(values) - 1), values
    to = math.log10 if scale == "log" else float
    ticks = (LogLocator() if scale == "log" else MaxNLocator(6)).tick_values(low, high)
    return lambda value: (to(value) - to(low)) / (to(high) - to(low)), [
        t for t in map(float, ticks) if low <= t <= high
    ]


def _spoken(name: str, values: Sequence[Any] = ()) -> str:
    scale = " (log scale)" if values and _scale(list(values)) == "log" else ""
    return name.replace("_", " ") + scale


def _aligned(summaries: list[Summary], levels: Levels) -> list[str]:
    """A header, and a line for each configuration, in columns for a font of one width."""
    columns = [[name, *(shown(s.overrides.get(name)) for s in summaries)] for name in levels]
    if any(s.method for s in summaries):
        columns.insert(0, ["method", *(s.method for s in summaries)])
    columns.append(["n", *(str(s.n) for s in summaries)])
    if any(s.diverged for s in summaries):
        columns.append(["diverged", *(str(s.diverged) for s in summaries)])
    padded = [[cell.rjust(max(map(len, column))) for cell in column] for column in columns]
    return ["  ".join(line) for line in zip(*padded, strict=True)]


def _left_out(summaries: list[Summary]) -> str:
    n = sum(s.diverged for s in summaries)
    return f"; {n} diverged member{'s' * (n > 1)} left out" if n else ""

"""Labels and scales for the figures and tables of a sweep.

described({"l2": 0.001, "widths": [64, 32]}, ["widths", "l2"])  # "widths=64 32, l2=0.001"
"""

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal

from mnist_flax.analysis.summaries import Levels, Summary

if TYPE_CHECKING:
    from matplotlib.colors import Normalize

ACCURACY = "validation accuracy (%)"


def shown(value: Any) -> str:
    """Write an override's value as the tables do: 0.001, 1 2, none; `base` where the base Config's value stands."""
    if isinstance(value, list):
        return " ".join(map(shown, value)) or "none"
    return "base" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def described(overrides: dict[str, Any], names: Iterable[str]) -> str:
    """Describe a configuration by its factors: dropout_rate=0.2, l2=0.001."""
    return ", ".join(f"{name}={shown(overrides[name])}" for name in names if name in overrides) or "base"


def spoken(name: str, scale: str = "linear") -> str:
    """A factor's name for a label, with the scale if it is logarithmic."""
    return name.replace("_", " ") + " (log scale)" * (scale == "log")


def aligned(summaries: list[Summary], levels: Levels) -> list[str]:
    """A header, and a line for each configuration, in columns for a monospaced font."""
    columns = [[name, *(shown(s.overrides.get(name)) for s in summaries)] for name in levels]
    if any(s.method for s in summaries):
        columns.insert(0, ["method", *(s.method for s in summaries)])
    columns.append(["n", *(str(s.n) for s in summaries)])
    if any(s.diverged for s in summaries):
        columns.append(["diverged", *(str(s.diverged) for s in summaries)])
    padded = [[cell.rjust(max(map(len, column))) for cell in column] for column in columns]
    return ["  ".join(line) for line in zip(*padded, strict=True)]


def left_out(summaries: list[Summary]) -> str:
    """How many members diverged, so are not in the means, for the end of a title."""
    n = sum(s.diverged for s in summaries)
    return f"; {n} diverged member{'s' * (n > 1)} left out" if n else ""


def color_scale(summaries: list[Summary]) -> tuple["Normalize", Literal["min", "neither"]]:
    """A colour scale of the means, and whether it cuts off the worst tenth, without which all others look alike."""
    import numpy as np
    from matplotlib.colors import Normalize

    means = [100 * s.mean for s in summaries if s.mean is not None]
    low = float(np.percentile(means, 10, method="lower"))
    return Normalize(low, max(means)), "min" if low > min(means) else "neither"


def scale_of(values: list[Any], logarithmic: bool | None = None) -> str:
    """The scale for a factor's levels, in order: log, linear or categories.

    `logarithmic` says how a search samples these numbers. Without it, they are on a log scale if they span a factor of
    30, and categories if 0, which has no logarithm, is among them.
    """
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return "categories"
    low, high = min(values), max(values)
    if logarithmic is not None:
        return "log" if logarithmic else "linear"
    if low < 0 or high < 30 * min((value for value in values if value > 0), default=math.inf):
        return "linear"
    return "log" if low > 0 else "categories"  # 0, 1e-4, 1e-3, ... would overlap on a linear scale


def axis_of(values: list[Any], scale: str) -> tuple[Callable[[Any], float], list[Any]]:
    """A function from a value to its place on an axis from 0 to 1, and the ticks."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    low, high = values[0], values[-1]
    if scale == "categories" or low == high:
        return lambda value: values.index(value) / max(1, len(values) - 1), values
    to = math.log10 if scale == "log" else float
    locator = LogLocator(subs=(1.0,) if high > 1000 * low else (1.0, 3.0)) if scale == "log" else MaxNLocator(6)
    ticks = [tick for tick in map(float, locator.tick_values(low, high)) if low <= tick <= high]
    return lambda value: (to(value) - to(low)) / (to(high) - to(low)), ticks

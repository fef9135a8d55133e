"""Scales for the figures of a sweep: means in percent, colours, and where a setting's values stand on an axis.

place, ticks = axis_of([1e-4, 1e-3, 1e-2], "log")
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from mnist_flax.analysis.summaries import Summary

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.colors import Normalize


def percent(spreads: Sequence[Sequence[float | None]]) -> "np.ndarray":
    """Means and the ends of their intervals, [3, n], in percent; one value's interval has no width."""
    import numpy as np

    known = [(mean, low, high) for mean, _, low, high in spreads if mean is not None]
    filled = [[mean if x is None else x for x in (mean, low, high)] for mean, low, high in known]
    return 100 * np.array(filled, float).reshape(-1, 3).T


def color_scale(summaries: list[Summary]) -> tuple["Normalize", Literal["min", "neither"]]:
    """A scale of colours, and whether it is open below: a few bad ones would make all others look alike."""
    import numpy as np
    from matplotlib.colors import Normalize

    means = [100 * s.mean for s in summaries if s.mean is not None]
    low = float(np.percentile(means, 10, method="lower"))
    return Normalize(low, max(means)), "min" if low > min(means) else "neither"


def scale_of(values: list[Any]) -> str:
    """How to show a factor's levels: log, linear or categories."""
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return "categories"
    many, low, high = len(values) > 12, min(values), max(values)
    wide = high >= 30 * min((value for value in values if value > 0), default=math.inf)
    if not wide or low < 0 or (many and (low == 0 or 8 * values[len(values) // 4] > high)):
        return "linear"  # many levels are a search's: whether uniform or log-uniform shows in their lower quartile
    return "log" if low > 0 else "categories"  # 0, 1e-4, 1e-3, ... has no logarithm, and would be a heap


def axis_of(values: list[Any], scale: str) -> tuple[Callable[[Any], float], list[Any]]:
    """Where on an axis from 0 to 1 a value stands, and the ticks."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    low, high = values[0], values[-1]
    if scale == "categories" or low == high:
        return lambda value: values.index(value) / max(1, len(values) - 1), values
    to = math.log10 if scale == "log" else float
    locator = LogLocator(subs=(1.0,) if high > 1000 * low else (1.0, 3.0)) if scale == "log" else MaxNLocator(6)
    ticks = [tick for tick in map(float, locator.tick_values(low, high)) if low <= tick <= high]
    return lambda value: (to(value) - to(low)) / (to(high) - to(low)), ticks

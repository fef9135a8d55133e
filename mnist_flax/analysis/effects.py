"""Main effects and interactions of a full two-level factorial.

for effect in effects(rows):
    print(effect.factors, effect.estimate, effect.low, effect.high)  # in points
"""

import itertools
import math
import statistics
from typing import NamedTuple

from mnist_flax.analysis.summaries import Row, by_configuration, factors, half_width


class Effect(NamedTuple):
    """What a factor, or the interaction of several, does to the accuracy: points, with a 95 % interval."""

    factors: tuple[str, ...]
    estimate: float
    low: float
    high: float


def effects(rows: list[Row]) -> list[Effect]:
    """Estimate the main effects and all interactions of a full two-level factorial; [] for any other selection stage.

    The effect of factors S among k is 2^(1-k) * sum over the cells of (product over S of -1 at the lower level, +1 at
    the higher) * cell mean; its interval is Student's, from the variance pooled within the cells, with
    sum(n_i - 1) degrees of freedom: Box, Hunter & Hunter, Statistics for Experimenters, 2nd edition (2005), chapter 5.
    Every cell needs two values. Seeds that the cells share are not used as blocks.
    """
    levels = factors(rows)
    groups = {key: group for key, group in by_configuration(rows).items() if key[0] == "selection"}
    cells: dict[tuple[int, ...], list[float]] = {}
    for group in groups.values():
        signs = tuple(2 * values.index(group[0]["overrides"].get(name)) - 1 for name, values in levels.items())
        cells[signs] = [100 * row["value"] for row in group if row["value"] is not None]
    two_level = bool(levels) and all(len(values) == 2 for values in levels.values())
    complete = len(groups) == len(cells) == 2 ** len(levels) and all(len(values) > 1 for values in cells.values())
    if not (two_level and complete) or len({method for _, method, _ in groups}) > 1:
        return []
    freedom = sum(len(values) - 1 for values in cells.values())
    pooled = sum((len(values) - 1) * statistics.variance(values) for values in cells.values()) / freedom
    scale = 2.0 ** (1 - len(levels))
    half = scale * half_width(math.sqrt(pooled * sum(1 / len(values) for values in cells.values())), freedom)
    found = []
    for chosen in (c for size in range(len(levels)) for c in itertools.combinations(range(len(levels)), size + 1)):
        signed = (math.prod(signs[i] for i in chosen) * statistics.fmean(values) for signs, values in cells.items())
        estimate = scale * math.fsum(signed)
        found.append(Effect(tuple(list(levels)[i] for i in chosen), estimate, estimate - half, estimate + half))
    return found

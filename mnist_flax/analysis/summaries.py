"""What a sweep found: each configuration over its seeds, the best of them, the effects of two-level factors.

A row is one member, a line of results.jsonl. A configuration is a row's overrides without the seed, within its stage
and method. A factor is an override, other than the seed, with more than one value in the selection stage.
"""

import itertools
import json
import math
import statistics
from typing import Any, NamedTuple

Row = dict[str, Any]
Levels = dict[str, list[Any]]  # the values of each factor
STAGES = ("selection", "final")


class Summary(NamedTuple):
    """One configuration over its seeds. Accuracies from 0 to 1, of members that were trained to their end (`n`)."""

    stage: str
    method: str
    overrides: dict[str, Any]
    n: int
    diverged: int
    mean: float | None
    standard_deviation: float | None
    low: float | None
    high: float | None
    seconds: float
    stopped: int = 0  # at a rung of a halving

    @property
    def key(self) -> tuple[str, str, str]:
        """The configuration's key in `by_configuration`."""
        return _key(self.stage, self.method, self.overrides)


def _key(stage: str, method: str, overrides: dict[str, Any]) -> tuple[str, str, str]:
    return stage, method, json.dumps(without_seed(overrides), sort_keys=True)


def by_configuration(rows: list[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """Group the rows by stage, method and overrides as JSON without the seed, in the order in which they appear.

    A search may draw the same overrides again, seed and all: the same run, which counts once.
    """
    groups: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in rows:
        group = groups.setdefault(_key(row["stage"], row["method"], row["overrides"]), {})
        group.setdefault(json.dumps(row["overrides"], sort_keys=True), row)
    return {key: list(group.values()) for key, group in groups.items()}


def summarize(rows: list[Row]) -> list[Summary]:
    """Summarize every configuration: the selection stage first, the best first within a stage, ties as they appear."""
    summaries = []
    for (stage, method, _), group in by_configuration(rows).items():
        values = [row["value"] for row in group if row["value"] is not None]
        overrides, seconds = without_seed(group[0]["overrides"]), math.fsum(row["seconds"] for row in group)
        stopped = sum("stopped" in row for row in group)
        counts = len(values), len(group) - len(values) - stopped
        summaries.append(Summary(stage, method, overrides, *counts, *spread(values), seconds, stopped))
    return sorted(summaries, key=lambda s: (STAGES.index(s.stage), math.inf if s.mean is None else -s.mean))


def spread(values: list[float]) -> tuple[float | None, float | None, float | None, float | None]:
    """Mean, standard deviation (n - 1) and the 95 % t interval of the mean of accuracies; None if there are too few.

    The interval ends at 0 and at 1, where accuracies do.
    """
    if len(values) < 2:
        return (values[0] if values else None), None, None, None
    mean, deviation = statistics.fmean(values), statistics.stdev(values)
    half = half_width(deviation / math.sqrt(len(values)), len(values) - 1)
    return mean, deviation, max(mean - half, 0.0), min(mean + half, 1.0)


def choose(rows: list[Row]) -> dict[str, dict[str, Any]]:
    """Choose for each method the overrides with the highest mean of the selection stage; the first of equals.

    A configuration of which any member diverged is not chosen; a method without any other is absent.
    """
    chosen: dict[str, dict[str, Any]] = {}
    for s in summarize(rows):
        if s.stage == "selection" and s.n and not s.diverged:
            chosen.setdefault(s.method, s.overrides)
    return chosen


def factors(rows: list[Row]) -> Levels:
    """Name the factors, each with its levels in order: None (the base's value), numbers by value, lists by length."""
    selection = [row["overrides"] for row in rows if row["stage"] == "selection"]
    names = dict.fromkeys(name for overrides in selection for name in without_seed(overrides))
    levels = {name: {json.dumps(o.get(name)): o.get(name) for o in selection}.values() for name in names}
    return {name: sorted(values, key=_rank) for name, values in levels.items() if len(values) > 1}


def half_width(standard_error: float, freedom: int) -> float:
    """Half of a 95 % t interval with `freedom` degrees of freedom."""
    from scipy.special import stdtrit  # late, as it takes a moment to import

    return float(stdtrit(freedom, 0.975)) * standard_error


def without_seed(overrides: dict[str, Any]) -> dict[str, Any]:
    """What the members of one configuration share."""
    return {name: value for name, value in overrides.items() if name != "seed"}


def _rank(level: Any) -> tuple[int, int, Any]:
    """A sort key for levels of different types."""
    if isinstance(level, list):
        return 3, len(level), level
    return (0 if level is None else 1 if isinstance(level, (int, float)) else 2), 0, level


class Effect(NamedTuple):
    """The effect of a factor, or of the interaction of several, on the accuracy: points, with a 95 % interval."""

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

"""Words for the figures and tables of a sweep: configurations, settings and their values.

described({"l2": 0.001, "widths": [64, 32]}, ["widths", "l2"])  # "widths=64 32, l2=0.001"
"""

from collections.abc import Iterable, Sequence
from typing import Any

from mnist_flax.analysis.scales import scale_of
from mnist_flax.analysis.summaries import Summary

ACCURACY = "validation accuracy (%)"

Levels = dict[str, list[Any]]
"""The values of each setting in which configurations differ."""


def shown(value: Any) -> str:
    """Write an override's value as the tables do: 0.001, 1 2, none; `base` where the base Config's value stands."""
    if isinstance(value, list):
        return " ".join(map(shown, value)) or "none"
    return "base" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def described(overrides: dict[str, Any], names: Iterable[str]) -> str:
    """Describe a configuration by its factors: dropout_rate=0.2, l2=0.001."""
    return ", ".join(f"{name}={shown(overrides[name])}" for name in names if name in overrides) or "base"


def spoken(name: str, values: Sequence[Any] = ()) -> str:
    """A factor's name for a label, with the scale if it is logarithmic."""
    scale = " (log scale)" if values and scale_of(list(values)) == "log" else ""
    return name.replace("_", " ") + scale


def aligned(summaries: list[Summary], levels: Levels) -> list[str]:
    """A header, and a line for each configuration, in columns for a font of one width."""
    columns = [[name, *(shown(s.overrides.get(name)) for s in summaries)] for name in levels]
    if any(s.method for s in summaries):
        columns.insert(0, ["method", *(s.method for s in summaries)])
    columns.append(["n", *(str(s.n) for s in summaries)])
    if any(s.diverged for s in summaries):
        columns.append(["diverged", *(str(s.diverged) for s in summaries)])
    padded = [[cell.rjust(max(map(len, column))) for cell in column] for column in columns]
    return ["  ".join(line) for line in zip(*padded, strict=True)]


def left_out(summaries: list[Summary]) -> str:
    """How many members are not in the means, for the end of a title."""
    n = sum(s.diverged for s in summaries)
    return f"; {n} diverged member{'s' * (n > 1)} left out" if n else ""

"""What a sweep found: its choice, its tables and its effects, from the rows of results.jsonl.

    choose(rows)            # {"": {"l2": 0.001, "dropout_rate": 0.2}}: for each method, the best on validation
    summarize(rows)         # each configuration: n, mean, standard deviation, 95 % interval of the mean
    write(directory, rows)  # results.jsonl, summary.csv, summary.md

A row is one member, as JSON values. A configuration is a row's overrides without the seed, within its stage and method.
A factor is an override, other than the seed, with more than one value in the selection stage.
"""

import csv
import io
import itertools
import json
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from mnist_flax.writer import rewrite, write_text

Row = dict[str, Any]
_STAGES = ("selection", "final")


class Summary(NamedTuple):
    """One configuration over its seeds. Accuracies from 0 to 1; members that diverged count in `diverged` only."""

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


class Effect(NamedTuple):
    """What a factor, or the interaction of several, does to the accuracy: points, with a 95 % interval."""

    factors: tuple[str, ...]
    estimate: float
    low: float
    high: float


def key_of(stage: str, method: str, overrides: dict[str, Any]) -> tuple[str, str, str]:
    """Name a configuration: the overrides as canonical JSON, whatever the seed."""
    return stage, method, json.dumps(_without_seed(overrides), sort_keys=True)


def members(rows: list[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """Group the rows by configuration, in the order in which these appear."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault(key_of(row["stage"], row["method"], row["overrides"]), []).append(row)
    return groups


def summarize(rows: list[Row]) -> list[Summary]:
    """Summarize every configuration: the selection stage first, the best first within a stage, ties as they appear."""
    summaries = []
    for (stage, method, _), group in members(rows).items():
        values = [row["value"] for row in group if row["value"] is not None]
        overrides, seconds = _without_seed(group[0]["overrides"]), math.fsum(row["seconds"] for row in group)
        counts = len(values), len(group) - len(values)
        summaries.append(Summary(stage, method, overrides, *counts, *spread(values), seconds))
    return sorted(summaries, key=lambda s: (_STAGES.index(s.stage), math.inf if s.mean is None else -s.mean))


def spread(values: list[float]) -> tuple[float | None, float | None, float | None, float | None]:
    """Return mean, standard deviation (n - 1) and the 95 % t interval of the mean; None where too few values tell."""
    if len(values) < 2:
        return (values[0] if values else None), None, None, None
    mean, deviation = statistics.fmean(values), statistics.stdev(values)
    half = _half_width(deviation / math.sqrt(len(values)), len(values) - 1)
    return mean, deviation, mean - half, mean + half


def choose(rows: list[Row]) -> dict[str, dict[str, Any]]:
    """Choose for each method the overrides with the highest mean of the selection stage; the first of equals.

    A configuration of which any member diverged is not chosen; a method without any other is absent.
    """
    chosen: dict[str, dict[str, Any]] = {}
    for s in summarize(rows):
        if s.stage == "selection" and s.n and not s.diverged:
            chosen.setdefault(s.method, s.overrides)
    return chosen


def factors(rows: list[Row]) -> dict[str, list[Any]]:
    """Name the factors, each with its levels in order: None (the base's value), numbers by value, lists by length."""
    selection = [row["overrides"] for row in rows if row["stage"] == "selection"]
    names = dict.fromkeys(name for overrides in selection for name in _without_seed(overrides))
    levels = {name: {json.dumps(o.get(name)): o.get(name) for o in selection}.values() for name in names}
    return {name: sorted(values, key=_rank) for name, values in levels.items() if len(values) > 1}


def effects(rows: list[Row]) -> list[Effect]:
    """Estimate the main effects and all interactions of a full two-level factorial; [] for any other selection stage.

    The effect of factors S among k is 2^(1-k) * sum over the cells of (product over S of -1 at the lower level, +1 at
    the higher) * cell mean; its interval is Student's, from the variance pooled within the cells, with
    sum(n_i - 1) degrees of freedom: Box, Hunter & Hunter, Statistics for Experimenters, 2nd edition (2005), chapter 5.
    Every cell needs two values. Seeds that the cells share are not used as blocks.
    """
    levels = factors(rows)
    groups = {key: group for key, group in members(rows).items() if key[0] == "selection"}
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
    half = scale * _half_width(math.sqrt(pooled * sum(1 / len(values) for values in cells.values())), freedom)
    found = []
    for chosen in (c for size in range(len(levels)) for c in itertools.combinations(range(len(levels)), size + 1)):
        signed = (math.prod(signs[i] for i in chosen) * statistics.fmean(values) for signs, values in cells.items())
        estimate = scale * math.fsum(signed)
        found.append(Effect(tuple(list(levels)[i] for i in chosen), estimate, estimate - half, estimate + half))
    return found


def shown(value: Any) -> str:
    """Write an override's value as the tables do: 0.001, 1 2, none; `base` where the base Config's value stands."""
    if isinstance(value, list):
        return " ".join(map(shown, value)) or "none"
    return "base" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def described(overrides: dict[str, Any], names: Iterable[str]) -> str:
    """Describe a configuration by its factors: dropout_rate=0.2, l2=0.001."""
    return ", ".join(f"{name}={shown(overrides[name])}" for name in names if name in overrides) or "base"


def markdown(rows: list[Row]) -> str:
    """Tabulate the selection stage, its effects where there are any, and the final stage; of a search only the best."""
    names, summaries = factors(rows), summarize(rows)
    selection, final = ([s for s in summaries if s.stage == stage] for stage in _STAGES)
    # A search has hardly two members a configuration, and few of the configurations that its values would make.
    sparse = len(selection) < math.prod(map(len, names.values()))
    most = 10 if sparse and sum(s.n + s.diverged for s in selection) < 2 * len(selection) else 40
    more = f"{len(selection) - most} more in summary.csv.\n" if len(selection) > most else ""
    numbers = ["n", "diverged", "mean (%)", "standard deviation", "95 % interval"]
    lines = [[s.method, *(shown(s.overrides.get(name)) for name in names), *_numbers(s)] for s in selection[:most]]
    tables = [_table("Selection: validation accuracy after the last epoch", ["method", *names, *numbers], lines), more]
    lines = []
    for e in effects(rows):
        levels = " to ".join(map(shown, names[e.factors[0]])) if len(e.factors) == 1 else ""
        lines.append([" x ".join(e.factors), levels, f"{e.estimate:+.3f}", f"{e.low:+.3f} to {e.high:+.3f}"])
    tables.append(_table("Effects on it, in points", ["effect", "levels", "estimate", "95 % interval"], lines))
    validation = {key_of("final", s.method, s.overrides): _numbers(s)[2] for s in selection}
    lines = [[s.method, described(s.overrides, names), *_numbers(s), validation.get(key_of(*s[:3]), "")] for s in final]
    title = "Final: test accuracy over fresh seeds, beside the validation accuracy that chose"
    tables.append(_table(title, ["method", "configuration", *numbers, "validation mean (%)"], lines))
    return "\n".join(filter(None, tables))


def write(directory: Path, rows: list[Row]) -> None:
    """Write results.jsonl (a row a line), summary.csv (every configuration, accuracies from 0 to 1) and summary.md."""
    rows = sorted(rows, key=lambda row: (_STAGES.index(row["stage"]), row["member"]))
    rewrite(directory / "results.jsonl", rows)
    write_text(directory / "summary.csv", _csv(summarize(rows)))
    write_text(directory / "summary.md", markdown(rows))


def _numbers(s: Summary) -> list[str]:
    """Counts, and mean, standard deviation and interval in percent; nothing where there is none."""
    mean, deviation, low, high = ("" if x is None else f"{100 * x:.3f}" for x in s[5:9])
    return [str(s.n), str(s.diverged or ""), mean, deviation, low and f"{low} to {high}"]


def _table(title: str, header: list[str], lines: list[list[str]]) -> str:
    """A Markdown table without the columns that are empty throughout; nothing without lines."""
    kept = [i for i in range(len(header)) if any(line[i] for line in lines)]
    first, *rest = (" | ".join(line[i].replace("|", "\\|") for i in kept) for line in [header, *lines])
    table = [f"| {first} |", "|" + "---|" * len(kept), *(f"| {line} |" for line in rest)]
    return "\n".join([f"{title}:\n", *table]) + "\n" if lines else ""


def _csv(summaries: list[Summary]) -> str:
    """Full digits; a column for each override."""
    names = list(dict.fromkeys(name for s in summaries for name in s.overrides))
    file = io.StringIO()
    out = csv.writer(file, lineterminator="\n")
    out.writerow(["stage", "method", *names, *Summary._fields[3:]])
    for s in summaries:
        values = (shown(v) if isinstance(v, list) else v for v in map(s.overrides.get, names))
        out.writerow([s.stage, s.method, *values, *s[3:]])
    return file.getvalue()


def _half_width(standard_error: float, freedom: int) -> float:
    """Half of a 95 % t interval."""
    from scipy.special import stdtrit  # late, as it takes a moment to import

    return float(stdtrit(freedom, 0.975)) * standard_error


def _without_seed(overrides: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in overrides.items() if name != "seed"}


def _rank(level: Any) -> tuple[int, int, Any]:
    """Order levels, whatever their kinds."""
    if isinstance(level, list):
        return 3, len(level), level
    return (0 if level is None else 1 if isinstance(level, (int, float)) else 2), 0, level

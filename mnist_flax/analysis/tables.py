"""The tables of a sweep: results.jsonl, summary.csv and summary.md."""

import csv
import io
import math
from pathlib import Path

from mnist_flax.analysis.labels import described, shown
from mnist_flax.analysis.summaries import STAGES, Row, Summary, effects, factors, summarize
from mnist_flax.process.files import write_lines, write_text


def markdown(rows: list[Row]) -> str:
    """Tabulate the selection stage (the best, if it is long), the effects if it is a factorial, and the final stage."""
    names, summaries = factors(rows), summarize(rows)
    selection, final = ([s for s in summaries if s.stage == stage] for stage in STAGES)
    # A search has one or two members per configuration, and few of all combinations of its values.
    sparse = len(selection) < math.prod(map(len, names.values()))
    most = 10 if sparse and sum(s.n + s.diverged + s.stopped for s in selection) < 2 * len(selection) else 40
    more = f"{len(selection) - most} more in summary.csv.\n" if len(selection) > most else ""
    numbers = ["n", "diverged", "stopped", "mean (%)", "standard deviation", "95 % interval"]
    lines = [[s.method, *(shown(s.overrides.get(name)) for name in names), *_numbers(s)] for s in selection[:most]]
    tables = [_table("Selection: validation accuracy after the last epoch", ["method", *names, *numbers], lines), more]
    lines = []
    for e in effects(rows):
        levels = " to ".join(map(shown, names[e.factors[0]])) if len(e.factors) == 1 else ""
        lines.append([" x ".join(e.factors), levels, f"{e.estimate:+.3f}", f"{e.low:+.3f} to {e.high:+.3f}"])
    tables.append(_table("Effects on it, in points", ["effect", "levels", "estimate", "95 % interval"], lines))
    validation = {s.key[1:]: _numbers(s)[3] for s in selection}
    lines = [[s.method, described(s.overrides, names), *_numbers(s), validation.get(s.key[1:], "")] for s in final]
    title = "Final: test accuracy over fresh seeds, next to the validation accuracy that chose"
    tables.append(_table(title, ["method", "configuration", *numbers, "validation mean (%)"], lines))
    return "\n".join(filter(None, tables))


def write_tables(directory: Path, rows: list[Row], title: str) -> None:
    """Write results.jsonl (a row a line), summary.csv (every configuration, accuracies from 0 to 1) and summary.md.

    `title`: the Markdown before the tables in summary.md.
    """
    rows = sorted(rows, key=lambda row: (STAGES.index(row["stage"]), row["member"]))
    write_lines(directory / "results.jsonl", rows)
    write_text(directory / "summary.csv", _csv(summarize(rows)))
    write_text(directory / "summary.md", f"{title}\n\n{markdown(rows)}")


def _numbers(s: Summary) -> list[str]:
    """Counts, and mean, standard deviation and interval in percent; empty where there is none."""
    mean, deviation, low, high = ("" if x is None else f"{100 * x:.3f}" for x in s[5:9])
    return [str(s.n), str(s.diverged or ""), str(s.stopped or ""), mean, deviation, low and f"{low} to {high}"]


def _table(title: str, header: list[str], lines: list[list[str]]) -> str:
    """A Markdown table without the columns that are empty throughout; nothing without lines."""
    kept = [i for i in range(len(header)) if any(line[i] for line in lines)]
    first, *rest = (" | ".join(line[i].replace("|", "\\|") for i in kept) for line in [header, *lines])
    table = [f"| {first} |", "|" + "---|" * len(kept), *(f"| {line} |" for line in rest)]
    return "\n".join([f"{title}:\n", *table]) + "\n" if lines else ""


def _csv(summaries: list[Summary]) -> str:
    """Full digits; a column for each override."""
    names = list(dict.fromkeys(name for s in summaries for name in s.overrides))
    fields = slice(3, None if any(s.stopped for s in summaries) else -1)
    file = io.StringIO()
    out = csv.writer(file, lineterminator="\n")
    out.writerow(["stage", "method", *names, *Summary._fields[fields]])
    for s in summaries:
        values = (shown(v) if isinstance(v, list) else v for v in map(s.overrides.get, names))
        out.writerow([s.stage, s.method, *values, *s[fields]])
    return file.getvalue()

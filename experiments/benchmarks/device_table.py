"""The tables of what `device.py` measured."""

import statistics
from typing import Any

Result = dict[str, Any]


def table(rows: list[Result]) -> str:
    """Speeds, populations, and what the other parts found, as Markdown."""
    about, found = rows[0], {}
    for row in rows[1:]:
        found.setdefault(row["part"], []).append(row)
    failed = [
        f"- {row['part']}: {row['failed'].splitlines()[-1]}" for row in rows[1:] if isinstance(row.get("failed"), str)
    ]
    good = {part: [row for row in mine if not isinstance(row.get("failed"), str)] for part, mine in found.items()}
    lines = [*_steps(good), "", *_populations(good.get("populations", [])), "", *_rest(good), *failed]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return (
        "\n".join([*lines, "", f"{about['device']}; {versions}; commit `{about['commit']}`; `{about['command']}`."])
        + "\n"
    )


def _median(values: list[float]) -> float:
    """Without the first, in which programs compile."""
    return statistics.median(values[1:])


def _steps(found: dict[str, list[Result]]) -> list[str]:
    lines = [
        "| precision | a step (ms) | PyTorch, CUDA graphs (ms) | ours / it | memory (MB) | large products (TFLOP/s) |",
        "|---|---|---|---|---|---|",
    ]
    peers = {row["precision"]: row for row in found.get("pytorch", [])}
    rates = {row["precision"]: row["tflops"] for row in found.get("products", [])}
    for row in found.get("steps", []):
        ours, peer = _median(row["milliseconds"]), peers.get(row["precision"])
        its = _median(peer["milliseconds"]) if peer else float("nan")
        cells = [row["precision"], f"{ours:.3f}", f"{its:.3f}", f"{ours / its:.2f}", f"{row['peak_memory_mb']:.0f}"]
        lines.append(f"| {' | '.join(cells)} | {rates.get(row['precision'], float('nan')):.0f} |")
    return lines


def _populations(rows: list[Result]) -> list[str]:
    lines = [
        "| members | a step of all (ms) | of one (ms) | as many alone / it | memory (MB) |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        one = statistics.median(row["milliseconds"])
        alone = statistics.median(rows[0]["milliseconds"])
        cells = [f"{row['members'] * one:.3f}", f"{one:.4f}", f"{alone / one:.1f}", f"{row['peak_memory_mb']:,.0f}"]
        lines.append(f"| {row['members']} | {' | '.join(cells)} |")
    return lines


def _rest(found: dict[str, list[Result]]) -> list[str]:
    """A line for each other part; those of an earlier commit name it."""
    lines = []
    for row in found.get("resume", []):
        with_flags = f"with `XLA_FLAGS={row['flags']}`" if row["flags"] else "without flags"
        compared = row.get("compared", "metrics")  # to the last digit
        words = {True: f"the same {compared}", False: f"other {compared}"}
        again, resumed = (words[row["same_bits"][name]] for name in ("again", "resumed"))
        than = "as" if row["same_bits"]["resumed"] else "than"
        killed = f"a run killed after {row['killed_at'][0]} steps and resumed has {resumed} {than} a straight one"
        lines.append(f"- {with_flags}: {killed}; a second straight one has {again}")
    for row in found.get("workers", []):
        done = f"{len(row['accuracy'])} members in {row['wall']:.0f} s" if not row["exit_code"] else row["said"]
        lines.append(f"- a sweep by {row['workers']} worker{'s' * (row['workers'] > 1)} on one card: {done}{_at(row)}")
    for row in found.get("tests", []):
        lines.append(f"- {', '.join(row['tests'])}: {len(row['failed'])} tests failed{_at(row)}")
    return lines


def _at(row: Result) -> str:
    return f" (commit `{row['commit']}`)" if "commit" in row else ""

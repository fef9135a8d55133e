"""Does a search find as good a configuration when bad members stop early, and in how much less time?

Plain random search, the same candidates by `Halving`, Optuna's TPE, and TPE by `Halving`: on the space of the study
learning_rate, with a smaller network and a quarter of the training set. Each repetition draws new candidates. What a
search chose is trained again with new seeds, because its own score was the highest of many.

    python experiments/benchmarks/halving.py            # 40 minutes on 2 cores; goes on where it stopped
    python experiments/benchmarks/halving.py --table    # only the table, from results/halving.jsonl
"""

import re
import statistics
import tempfile
from pathlib import Path
from typing import Any

import searches
from provenance import RESULTS, as_markdown
from scipy import stats

LINES = RESULTS / "halving.jsonl"
CANDIDATES, SEEDS, EPOCHS = 64, 10, 9
BATCH, EXAMPLES = 128, 12_800
HEAD = f"""
from mnist_flax import Config, Halving, Hyperparams

BASE = Config(
    widths=(128, 128), epochs={EPOCHS}, steps_per_call=100, hparams=Hyperparams(seed=SEED),
    train_split="train[:{EXAMPLES}]", eval_split="train[50000:]",
)
FINAL_SEEDS = 0
"""
ADAPT = "ADAPT = Halving(rungs=(1, 3, 9), keep=1 / 3)\n"
RANDOM = f"""
import numpy as np


def sweep():
    rng = np.random.default_rng(SEED)
    for _ in range({CANDIDATES}):
        yield {{
            "learning_rate": 10 ** rng.uniform(-4, -1),
            "l2": 10 ** rng.uniform(-7, -2),
            "dropout_rate": rng.uniform(0.0, 0.6),
            "label_smoothing": rng.uniform(0.0, 0.3),
        }}
"""
TPE = f"""
TRIALS = {CANDIDATES}


def search(trial):
    return {{
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True),
        "l2": trial.suggest_float("l2", 1e-7, 1e-2, log=True),
        "dropout_rate": trial.suggest_float("dropout_rate", 0.0, 0.6),
        "label_smoothing": trial.suggest_float("label_smoothing", 0.0, 0.3),
    }}
"""
CHOSEN = f"""

def sweep():
    for seed in range(1000, {1000 + SEEDS}):
        yield CHOICE | {{"seed": seed}}
"""
METHODS = {"random": RANDOM, "random, halving": ADAPT + RANDOM, "TPE": TPE, "TPE, halving": ADAPT + TPE}


def sweep(text: str, seed: int) -> tuple[list[dict[str, Any]], float, str]:
    """Run a sweep; returns its results, its seconds, and what it printed."""
    with tempfile.TemporaryDirectory() as directory:
        return searches.sweep(f"SEED = {seed}\n{HEAD}{text}", Path(directory))


def search(method: str, repetition: int) -> dict[str, Any]:
    """One search, and what the configuration that it chose is worth."""
    rows, seconds, said = sweep(METHODS[method], repetition)
    best = searches.best_of(rows)
    again, _, _ = sweep(f"CHOICE = {best['overrides']!r}\n{CHOSEN}", repetition)
    epochs = sum(len(row["history"]) // 2 for row in rows)
    lanes = [(int(used), int(number)) for used, number in re.findall(r"(\d+) of (\d+) lanes in use", said)]
    return {
        "seconds": seconds,
        "steps": epochs * -(-EXAMPLES // BATCH),
        "lanes": [sum(used for used, _ in lanes), sum(number for _, number in lanes)] if lanes else None,
        "chosen": best["overrides"],
        "validation": best["value"],
        "again": [row["value"] or 0.0 for row in again],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Means over the repetitions, and differences to plain random search, paired, with 95 % intervals."""
    about, rows = rows[0], rows[1:]
    found = searches.by_method(rows, METHODS)
    plain = found["random"]
    lines = [
        "| search | n | validation of its choice | to plain random search | steps | seconds | lanes in use |",
        "|---|---|---|---|---|---|---|",
    ]
    for method, mine in found.items():
        scores = [100 * statistics.mean(row["again"]) for row in mine]
        apart = [score - 100 * statistics.mean(row["again"]) for score, row in zip(scores, plain, strict=True)]
        steps = statistics.mean(row["steps"] for row in mine) / plain[0]["steps"]
        seconds = statistics.median(row["seconds"] / other["seconds"] for row, other in zip(mine, plain, strict=True))
        compared = ""
        if mine is not plain:
            low, high = stats.ttest_1samp(apart, 0).confidence_interval(0.95)
            compared = f"{statistics.mean(apart):+.3f} ({low:+.3f} to {high:+.3f})"
        used = [row["lanes"] for row in mine if row["lanes"]]
        share = f"{sum(u for u, _ in used) / sum(number for _, number in used):.2f}" if used else ""
        cells = method, len(mine), f"{statistics.mean(scores):.3f} %", compared, f"{steps:.2f}", f"{seconds:.2f}", share
        lines.append(f"| {' | '.join(map(str, cells))} |")
    every = statistics.median(row["seconds"] for row in plain)
    lines += [
        "",
        f"Steps and seconds (of the whole command) as shares of plain random search's, {plain[0]['steps']:,} steps",
    ]
    lines[-1] += f" and {every:.0f} s: means, and medians of the ratios in turn. Differences in points, 95 %, paired."
    lines += [""]
    return "\n".join([*lines, f"{as_markdown(about)}."]) + "\n"


if __name__ == "__main__":
    searches.main(LINES, METHODS, search, table, __doc__)

"""Does a population that adapts find a better network than the best of as many fixed hyperparameters?

16 members of 20 epochs, all drawn from one space: trained as they are, with a constant and with a linear learning rate,
and by `PopulationBased`. So every method takes as many steps. The smaller network and the quarter of the training set
are those of halving.py. Validation chooses one network; the test split is read once for it.

    python experiments/benchmarks/population_based.py            # about 25 minutes on 2 cores; goes on where it stopped
    python experiments/benchmarks/population_based.py --table    # only the table, from results/population_based.jsonl
"""

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import searches
from provenance import RESULTS, as_markdown
from scipy import stats

LINES = RESULTS / "population_based.jsonl"
MEMBERS = 16
HEAD = """
from mnist_flax import Config, Hyperparams, PopulationBased
"""
STUDY = f"""
import numpy as np

BASE = Config(
    widths=(128, 128), epochs=20, steps_per_call=100, schedule=SCHEDULE, hparams=Hyperparams(seed=SEED),
    train_split="train[:12800]", eval_split="train[50000:]",
)
FINAL_SEEDS = 0


def sweep():
    rng = np.random.default_rng(SEED)
    for i in range({MEMBERS}):
        yield {{
            "learning_rate": 10 ** rng.uniform(-4, -1),
            "l2": 10 ** rng.uniform(-7, -2),
            "dropout_rate": rng.uniform(0.0, 0.6),
            "label_smoothing": rng.uniform(0.0, 0.3),
            "seed": {MEMBERS} * SEED + i,
        }}
"""
PERTURB = {name: (0.8, 1.25) for name in ("learning_rate", "l2", "dropout_rate", "label_smoothing")}
METHODS = {
    "fixed, constant learning rate": 'SCHEDULE = "constant"\n',
    "fixed, linear learning rate": 'SCHEDULE = "linear"\n',
    "population based": f'SCHEDULE = "constant"\nADAPT = PopulationBased(perturb={PERTURB})\n',
}


def search(method: str, repetition: int) -> dict[str, Any]:
    """One sweep, and the test of the network that validation chose."""
    with tempfile.TemporaryDirectory() as directory:
        text = f"{HEAD}SEED = {repetition}\n{METHODS[method]}{STUDY}"
        rows, seconds, _ = searches.sweep(text, Path(directory))
        best = searches.best_of(rows)
        words = "--workdir", f"{directory}/sweep/{best['workdir']}", "--split", "test", "--json"
        tested = json.loads(searches.run("evaluate", *words))
    return {
        "seconds": seconds,
        "diverged": sum(row["value"] is None for row in rows),
        "copies": len(best.get("lineage", [0])) - 1,
        "validation": best["value"],
        "test": tested["accuracy"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Means over the repetitions; differences to the population, paired, with t intervals and p-values by Holm."""
    about, rows = rows[0], rows[1:]
    found = searches.by_method(rows, METHODS)
    *fixed, ours = found
    tests = {method: _paired(found[ours], found[method]) for method in fixed}
    lines = [
        "| 16 members | n | validation of the best | its test | the population's lead, 95 % | p (Holm) | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    ordered = sorted(fixed, key=lambda method: tests[method].pvalue)
    holm, highest = {}, 0.0
    for rank, method in enumerate(ordered):
        highest = max(highest, min(1.0, (len(ordered) - rank) * tests[method].pvalue))
        holm[method] = highest
    for method, mine in found.items():
        means = [f"{100 * statistics.mean(row[name] for row in mine):.3f} %" for name in ("validation", "test")]
        lead, p = "", ""
        if method in tests:
            low, high = tests[method].confidence_interval(0.95)
            apart = statistics.mean(a["test"] - b["test"] for a, b in zip(found[ours], mine, strict=True))
            lead, p = f"{100 * apart:+.3f} ({100 * low:+.3f} to {100 * high:+.3f})", f"{holm[method]:.3f}"
        seconds = f"{statistics.mean(row['seconds'] for row in mine):.1f}"
        lines.append(f"| {' | '.join([method, f'{len(mine)}', *means, lead, p, seconds])} |")
    copies = statistics.mean(row["copies"] for row in found[ours])
    lines += ["", f"The population's best network has {copies:.1f} copies in its lineage, on average.", ""]
    return "\n".join([*lines, f"{as_markdown(about)}."]) + "\n"


def _paired(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> Any:
    return stats.ttest_rel([row["test"] for row in ours], [row["test"] for row in theirs])


if __name__ == "__main__":
    searches.main(LINES, METHODS, search, table, __doc__)

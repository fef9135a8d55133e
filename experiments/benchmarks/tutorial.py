"""Does the default run reach what the Keras tutorial reaches?

Ten seeds of each, on the same files, in turn; writes results/tutorial.jsonl and, from it, results/tutorial.md.

    python experiments/benchmarks/tutorial.py            # 6 minutes on 2 cores; needs the bench extra
    python experiments/benchmarks/tutorial.py --table    # only the table, from the file
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from provenance import RESULTS, as_markdown, load_results, save_results

LINES, TABLE = RESULTS / "tutorial.jsonl", RESULTS / "tutorial.md"
PEER = Path(__file__).parent / "peers" / "keras_tutorial.py"


def run_ours(seed: int) -> dict:
    """One default run, by the command that a user types."""
    with tempfile.TemporaryDirectory() as directory:
        line = [sys.executable, "-m", "mnist_flax.train", "--workdir", f"{directory}/exp", "--seed", str(seed)]
        subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
        metrics = [json.loads(row) for row in Path(directory, "exp", "metrics.jsonl").read_text().splitlines()]
    evals = [row for row in metrics if row["split"] == "eval"]
    return {
        "program": "mnist_flax",
        "seed": seed,
        "accuracy": [row["accuracy"] for row in evals],
        "seconds": round(sum(row["seconds"] for row in metrics), 2),
    }


def run_keras(seed: int, python: str) -> dict:
    """One run of the tutorial itself."""
    env = os.environ | {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    result = subprocess.run(
        [python, str(PEER), "--seed", str(seed)], env=env, check=True, capture_output=True, text=True
    )
    return json.loads(result.stdout.splitlines()[-1])


def table(rows: list[dict]) -> str:
    """Means and spreads after the last epoch, and how far the two programs are apart."""
    about, runs = rows[0], rows[1:]
    lines = [
        "| program | n | test accuracy after 4 epochs, mean | standard deviation | lowest | highest |",
        "|---|---|---|---|---|---|",
    ]
    final = {}
    for row in runs:
        final.setdefault(row["program"], []).append(100 * row["accuracy"][-1])
    for program, values in final.items():
        mean, spread = statistics.mean(values), statistics.stdev(values)
        lines.append(
            f"| {program} | {len(values)} | {mean:.3f} % | {spread:.3f} | {min(values):.2f} % | {max(values):.2f} % |"
        )
    ours, theirs = final.values()
    error = (statistics.variance(ours) / len(ours) + statistics.variance(theirs) / len(theirs)) ** 0.5
    apart = statistics.mean(ours) - statistics.mean(theirs)
    peer = next(row["versions"] for row in runs if "versions" in row)
    lines += [
        "",
        f"The means differ by {apart:+.3f} points: {abs(apart) / error:.2f} standard errors of the difference.",
        "",
        f"{as_markdown(about)}; the peer: {', '.join(f'{k} {v}' for k, v in peer.items())}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what was asked for, saving each result as it comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--keras-python", default=sys.executable, help="a Python with the bench extra")
    parser.add_argument("--table", action="store_true", help="only make the table")
    args = parser.parse_args()
    if not args.table:
        programs = (run_ours, partial(run_keras, python=args.keras_python))
        save_results(LINES, (run(seed) for seed in range(args.seeds) for run in programs))
    TABLE.write_text(table(load_results(LINES)))
    print(TABLE.read_text())


if __name__ == "__main__":
    main()

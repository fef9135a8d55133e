"""What does a population of 16 cost, beside 16 lone runs of ours and of PyTorch?

The default run with 16 seeds: by 16 `train` commands, by one `sweep` command and by 16 runs of the PyTorch loop with
fused Adam, in turn; writes results/population.jsonl and, from it, results/population.md.

    python experiments/benchmarks/population.py            # 5 minutes a round on 2 cores; needs the bench extra
    python experiments/benchmarks/population.py --table    # only the table, from the file
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from provenance import RESULTS, as_markdown, load_results, save_results

LINES, TABLE = RESULTS / "population.jsonl", RESULTS / "population.md"
MEMBERS = 16
STUDY = f"""
from mnist_flax import Config

BASE = Config()
FINAL_SEEDS = 0  # nothing is selected, so the test split may be looked at, as the tutorial does


def sweep():
    yield from ({{"seed": seed}} for seed in range({MEMBERS}))
"""


def pure(histories: list[list[dict]]) -> float:
    """Seconds of all epochs but the first, which also compiles."""
    return sum(line["seconds"] for history in histories for line in history if line["epoch"] > 1)


def lone(directory: Path) -> dict:
    """One command a member."""
    began = time.perf_counter()
    for seed in range(MEMBERS):
        line = [sys.executable, "-m", "mnist_flax.train", "--workdir", f"{directory}/{seed}", "--seed", str(seed)]
        subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - began
    files = [(directory / str(seed) / "metrics.jsonl").read_text() for seed in range(MEMBERS)]
    histories = [[json.loads(row) for row in text.splitlines()] for text in files]
    return {"program": f"{MEMBERS} train commands", "wall": wall, "pure": pure(histories), "score": score(histories)}


def population(directory: Path) -> dict:
    """One command."""
    (directory / "study.py").write_text(STUDY)
    line = [sys.executable, "-m", "mnist_flax.sweep", f"{directory}/study.py", "--workdir", f"{directory}/sweep"]
    began = time.perf_counter()
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - began
    rows = [json.loads(row) for row in (directory / "sweep" / "results.jsonl").read_text().splitlines()]
    histories = [row["history"] for row in rows]
    return {"program": "1 sweep command", "wall": wall, "pure": pure(histories), "score": score(histories)}


def pytorch(directory: Path) -> dict:
    """One command a member, of the peer."""
    began, rows = time.perf_counter(), []
    for seed in range(MEMBERS):
        line = [sys.executable, str(Path(__file__).parent / "peers" / "pytorch_loop.py"), "--seed", str(seed)]
        rows.append(json.loads(subprocess.run(line, check=True, capture_output=True).stdout))
    wall = time.perf_counter() - began
    alone = sum(sum(row["epoch_seconds"][1:]) for row in rows)
    accuracy = statistics.mean(row["accuracy"][-1] for row in rows)
    return {"program": f"{MEMBERS} PyTorch runs", "wall": wall, "pure": alone, "score": accuracy}


def in_turn(rounds: int) -> Iterator[dict]:
    """Both programs, as often."""
    for _ in range(rounds):
        for program in (lone, population, pytorch):
            with tempfile.TemporaryDirectory() as directory:
                yield program(Path(directory))


def score(histories: list[list[dict]]) -> float:
    """The mean accuracy after the last epoch: both must come to the same."""
    return statistics.mean(history[-1]["accuracy"] for history in histories)


def table(rows: list[dict]) -> str:
    """Medians over the rounds, and the ratios of each round."""
    about, runs = rows[0], rows[1:]
    by_program: dict[str, list[dict]] = {}
    for row in runs:
        by_program.setdefault(row["program"], []).append(row)
    lines = [
        "| 16 members, 4 epochs | rounds | wall time, median | epochs 2 to 4 alone, median | mean test accuracy |",
        "|---|---|---|---|---|",
    ]
    for program, found in by_program.items():
        wall, alone = (statistics.median(row[name] for row in found) for name in ("wall", "pure"))
        lines.append(f"| {program} | {len(found)} | {wall:.1f} s | {alone:.1f} s | {100 * found[0]['score']:.3f} % |")
    ours, sweep, peer = by_program.values()
    for name, words in (("wall", "wall time"), ("pure", "epochs 2 to 4")):
        for others, whose in ((ours, f"the {MEMBERS} commands"), (peer, f"the {MEMBERS} PyTorch runs")):
            ratios = ", ".join(f"{b[name] / a[name]:.2f}" for a, b in zip(others, sweep, strict=True))
            lines += ["", f"The sweep's {words} divided by that of {whose}, by round: {ratios}."]
    return "\n".join([*lines, "", as_markdown(about)]) + ".\n"


def main() -> None:
    """Run what was asked for, saving each result as it comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--table", action="store_true", help="only make the table")
    args = parser.parse_args()
    if not args.table:
        save_results(LINES, in_turn(args.rounds))
    TABLE.write_text(table(load_results(LINES)))
    print(TABLE.read_text())


if __name__ == "__main__":
    main()

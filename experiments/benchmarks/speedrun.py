"""How many seconds from a cold shell to a mean of 97, 98 and 98.5 % on test, and what do others do in that time?

The recipes in experiments/recipes/ were chosen on validation. Each is run by the command that a user types, with 30
new seeds; in turn with it the same recipe in Keras and in PyTorch, one epoch of the Keras tutorial, and the imports of
TensorFlow and torch alone. All processes find their bytecode cached, and ours its compiled programs.

    python experiments/benchmarks/speedrun.py            # 3 minutes a round on 2 cores; needs the bench extra
    python experiments/benchmarks/speedrun.py --table    # only the table, from results/speedrun.jsonl

It goes on where it was stopped.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from provenance import RESULTS, as_markdown, load_results, save_results
from scipy import stats

LINES, TABLE = RESULTS / "speedrun.jsonl", RESULTS / "speedrun.md"
HERE = Path(__file__).parent
RECIPES = HERE.parent / "recipes"
MARKS = ("97", "98", "98.5")
FIRST_SEED = 2000  # neither the selection's nor the study's
OURS = "mnist_flax"
PEERS = {"Keras on TensorFlow": "recipe_keras.py", "PyTorch": "recipe_pytorch.py"}
Row = dict[str, Any]


def ours(mark: str, seed: int) -> Row:
    """One run by our command."""
    with tempfile.TemporaryDirectory() as directory:
        line = [sys.executable, "-m", "mnist_flax.train", "--workdir", f"{directory}/exp"]
        line += ["--config", str(RECIPES / f"{mark}.json"), "--seed", f"{seed}"]
        seconds, _ = timed(line)
        metrics = [json.loads(row) for row in Path(directory, "exp", "metrics.jsonl").read_text().splitlines()]
    training = sum(row["seconds"] for row in metrics if row["split"] == "train")
    return {"accuracy": metrics[-1]["accuracy"], "training": round(training, 3), "seconds": seconds}


def peer(program: str, *words: str) -> Row:
    """One run of a peer's program, which prints a JSON line."""
    seconds, said = timed([sys.executable, str(HERE / "peers" / program), *words])
    found = json.loads(said.splitlines()[-1])
    accuracy = found["accuracy"][-1] if isinstance(found["accuracy"], list) else found["accuracy"]
    training = found["training"] if "training" in found else sum(found["epoch_seconds"])
    return {"accuracy": accuracy, "training": training, "seconds": seconds, "versions": found["versions"]}


def timed(line: list[str]) -> tuple[float, str]:
    """The seconds of a process from its start to its end, and what it printed."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    env |= {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    began = time.perf_counter()
    said = subprocess.run(line, env=env, check=True, capture_output=True, text=True).stdout
    return round(time.perf_counter() - began, 3), said


def one(program: str, mark: str, seed: int) -> Row:
    """One row of the results."""
    if program.startswith("import "):
        found: Row = {"seconds": timed([sys.executable, "-c", program])[0]}
    elif program == OURS:
        found = ours(mark, seed)
    elif mark:
        found = peer(PEERS[program], str(RECIPES / f"{mark}.json"), "--seed", f"{seed}")
    else:
        found = peer("keras_tutorial.py", "--epochs", "1", "--seed", f"{seed}")
    return {"program": program, "mark": mark, "seed": seed} | found


TUTORIAL = "one epoch of the tutorial, Keras on TensorFlow"
ROWS = [(program, mark) for mark in MARKS for program in (OURS, *PEERS)]
ROWS += [(program, "") for program in (TUTORIAL, "import tensorflow", "import torch")]


def table(rows: list[Row]) -> str:
    """Means over the seeds with 95 % intervals."""
    about, rows = rows[0], rows[1:]
    versions: dict[str, str] = {}
    lines = [
        "| mark | program | n | mean test accuracy, 95 % interval | seconds from a cold shell | of training |",
        "|---|---|---|---|---|---|",
    ]
    for program, mark in ROWS:
        found = [row for row in rows if (row["program"], row["mark"]) == (program, mark)]
        for row in found:
            versions |= row.get("versions", {})
        accuracy = _interval([100 * row["accuracy"] for row in found if "accuracy" in row], 3, " %")
        seconds = _interval([row["seconds"] for row in found], 2, "")
        training = _interval([row["training"] for row in found if "training" in row], 2, "")
        name = f"`{program}`" if program.startswith("import") else program
        lines.append(f"| {mark and f'{mark} %'} | {name} | {len(found)} | {accuracy} | {seconds} | {training} |")
    peers = ", ".join(f"{name} {version}" for name, version in versions.items())
    return "\n".join([*lines, "", f"{as_markdown(about)}; the peers: {peers}."]) + "\n"


def _interval(values: list[float], digits: int, unit: str) -> str:
    if len(values) < 2:
        return ""
    mean, half = float(np.mean(values)), float(stats.sem(values) * stats.t.ppf(0.975, len(values) - 1))
    return f"{mean:.{digits}f}{unit} ({mean - half:.{digits}f} to {mean + half:.{digits}f})"


def main() -> None:
    """Measure every row in turn, seed by seed, saving each result as it comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--table", action="store_const", dest="seeds", const=0, help="only make the table")
    args = parser.parse_args()
    if not LINES.exists():
        save_results(LINES, [])
    known = {(row["program"], row["mark"], row["seed"]) for row in load_results(LINES)[1:]}
    for seed in range(FIRST_SEED, FIRST_SEED + args.seeds):
        for program, mark in ROWS:
            if (program, mark, seed) not in known:
                row = json.dumps(one(program, mark, seed))
                print(row, flush=True)
                with LINES.open("a") as file:
                    file.write(row + "\n")
    TABLE.write_text(table(load_results(LINES)))
    print(TABLE.read_text())


if __name__ == "__main__":
    main()

"""Where does the time of a short run go that is not training, from the cold shell to the first step and after the last?

A default run of one epoch, its compiled programs cached, and a process that only imports what it needs, in turn.

    python experiments/benchmarks/start_end.py            # 5 minutes on 2 cores
    python experiments/benchmarks/start_end.py --table    # only the table, from results/start_end.jsonl
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from provenance import RESULTS, as_markdown, load_results, save_results

LINES, TABLE = RESULTS / "start_end.jsonl", RESULTS / "start_end.md"
IMPORTS = "import jax, flax.linen, optax; from orbax.checkpoint import v1"
PHASES = {
    "python": "Python starts",
    "parse": "arguments are parsed, what is wrong is refused",
    "imports": "JAX, Flax, optax, orbax and the rest are imported",
    "data": "the data is found and its checksums compared",
    "state": "weights are drawn",
    "summary": "the summary is printed",
    "compile": "the first steps begin: programs are loaded from the cache",
    "epochs": "the epoch",
    "save": "the last checkpoint is on the disk",
    "writer": "figures and event files are closed",
    "exit": "the process ends",
}
# Note when the run reaches each of its parts; a part's functions are replaced once the run has imported them itself.
CHILD = """
import json, os, time
marks = {"python": time.time()}
def mark(name):
    marks.setdefault(name, time.time())
    if name == "writer":  # the last; the process then ends at once
        open(os.environ["MARKS"], "w").write(json.dumps(marks))
def around(owner, attribute, before=None, after=None):
    function = getattr(owner, attribute)
    def wrapped(*args, **kwargs):
        before and mark(before)
        result = function(*args, **kwargs)
        after and mark(after)
        return result
    setattr(owner, attribute, wrapped)
from mnist_flax.data import datasets
from mnist_flax.monitor.async_writer import AsyncWriter
from mnist_flax.workdir import claim
around(claim, "check", before="parse")
open_dataset = datasets.open_dataset
def opened(*args, **kwargs):
    mark("imports")
    from mnist_flax.drivers import RunDriver
    from mnist_flax.train import run
    around(run, "print_run_summary", before="state", after="summary")
    around(RunDriver, "train", after="compile")
    around(run.Saver, "__exit__", before="epochs", after="save")
    around(AsyncWriter, "close", after="writer")
    found = open_dataset(*args, **kwargs)
    mark("data")
    return found
datasets.open_dataset = opened
import runpy
runpy.run_module("mnist_flax.train", run_name="__main__", alter_sys=True)
"""


def run() -> dict[str, Any]:
    """The seconds of each phase of one run, and of its steps and evaluation as the run itself counts them."""
    with tempfile.TemporaryDirectory() as directory:
        marks = Path(directory, "marks.json")
        words = [sys.executable, "-c", CHILD, "--workdir", f"{directory}/exp", "--epochs", "1"]
        began = time.time()
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"MARKS": str(marks)})
        ended = time.time()
        lines = [json.loads(line) for line in Path(directory, "exp", "metrics.jsonl").read_text().splitlines()]
        times = json.loads(marks.read_text()) | {"exit": ended}
    found, last = {}, began
    for name in PHASES:
        found[name], last = round(times[name] - last, 4), times[name]
    return {"program": "run", "wall": ended - began, "epoch": sum(line["seconds"] for line in lines), "phases": found}


def imports() -> dict[str, Any]:
    """The seconds of a process that imports, and does nothing."""
    began = time.time()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True)
    return {"program": "imports", "wall": time.time() - began}


def in_turn(rounds: int) -> Iterator[dict[str, Any]]:
    """Both, as often, after one run that fills the caches."""
    run()
    for _ in range(rounds):
        yield run()
        yield imports()


def table(rows: list[dict[str, Any]]) -> str:
    """Medians and quartiles."""
    about, rows = rows[0], rows[1:]
    runs, others = ([row for row in rows if row["program"] == name] for name in ("run", "imports"))
    lines = ["| until | seconds, median (quartiles) |", "|---|---|"]
    lines += [f"| {text} | {_shown([row['phases'][name] for row in runs])} |" for name, text in PHASES.items()]
    rest = [row["wall"] - row["epoch"] for row in runs]
    ratios = [mine / row["wall"] for mine, row in zip(rest, others, strict=True)]
    lines += [
        f"| **in all** | {_shown([row['wall'] for row in runs])} |",
        f"| **all but steps and evaluation** | {_shown(rest)} |",
        f"| `{IMPORTS}` alone | {_shown([row['wall'] for row in others])} |",
        "",
        f"All but steps and evaluation, divided by these imports in the same round: {_shown(ratios)}, n = {len(runs)}.",
    ]
    return "\n".join([*lines, "", f"{as_markdown(about)}."]) + "\n"


def _shown(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    """Run what was asked for, saving each result as it comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--table", action="store_true", help="only make the table")
    args = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    if not args.table:
        save_results(LINES, in_turn(args.rounds))
    TABLE.write_text(table(load_results(LINES)))
    print(TABLE.read_text())


if __name__ == "__main__":
    main()

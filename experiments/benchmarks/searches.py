"""What the comparisons of searches share: a sweep run as a user runs it, in turn, resumable."""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from provenance import load_results, save_results

REPETITIONS = 10
Row = dict[str, Any]


def sweep(text: str, directory: Path) -> tuple[list[Row], float, str]:
    """Run an experiment file with this text in a directory; returns its results, its seconds, and what it printed."""
    file, workdir = directory / "study.py", directory / "sweep"
    file.write_text(text)
    began = time.perf_counter()
    said = run("sweep", file, "--workdir", workdir, "--no-figures")
    seconds = round(time.perf_counter() - began, 2)
    return [json.loads(row) for row in (workdir / "results.jsonl").read_text().splitlines()], seconds, said


def run(command: str, *words: object) -> str:
    """The standard output of one of our commands."""
    line = [sys.executable, "-m", f"mnist_flax.{command}", *map(str, words)]
    return subprocess.run(line, check=True, capture_output=True, text=True).stdout


def best_of(rows: list[Row]) -> Row:
    """The member with the best validation."""
    return max((row for row in rows if row["value"] is not None), key=lambda row: row["value"])


def by_method(rows: list[Row], methods: Iterable[str]) -> dict[str, list[Row]]:
    """The results of each method, in the order of their repetitions, so that those of two can be paired."""
    ordered = sorted(rows, key=lambda row: row["repetition"])
    return {method: [row for row in ordered if row["method"] == method] for method in methods}


def main(
    file: Path,
    methods: Iterable[str],
    search: Callable[[str, int], Row],
    table: Callable[[list[Row]], str],
    about: str | None,
) -> None:
    """Repeat every method in turn, saving each result as it comes; then make the table beside the file."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    parser.add_argument("--table", action="store_const", dest="repetitions", const=0, help="only make the table")
    args = parser.parse_args()
    if not file.exists():
        save_results(file, [])
    known = {(row["method"], row["repetition"]) for row in load_results(file)[1:]}
    for repetition in range(args.repetitions):
        for method in methods:
            if (method, repetition) not in known:
                row = json.dumps({"method": method, "repetition": repetition} | search(method, repetition))
                print(row, flush=True)
                with file.open("a") as lines:
                    lines.write(row + "\n")
    text = table(load_results(file))
    file.with_suffix(".md").write_text(text)
    print(text)

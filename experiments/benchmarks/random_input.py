"""What do the commands make of random input? Files and flags, damaged and made up, thousands of each.

    python experiments/benchmarks/random_input.py               # 20,000 inputs: 40 minutes on 2 cores
    python experiments/benchmarks/random_input.py --share 0.01  # a taste
    python experiments/benchmarks/random_input.py --table       # only the table, from results/random_input.jsonl

An input must be used, or be refused in one printable line with exit code 1 or 2: within seconds, in bounded memory, and
with nothing written but what the command is for. The commands run through `cli.main`, as always, up to where an
accepted input would be compiled. An input follows from the seed, its kind and its number, so that one can be tried
again: `--only pictures --numbers 17 18`. Libraries keep some memory of every input, so a process tries a few hundred.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import functools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import random_input_cases as cases
from provenance import RESULTS, as_markdown, load_results, save_results
from random_input_originals import make_originals
from random_input_run import limit, outcome, stand_ins

LINES, TABLE = RESULTS / "random_input.jsonl", RESULTS / "random_input.md"
CHUNK = 500  # inputs of one process
KINDS: dict[str, tuple[Callable[[random.Random, Path], cases.Case], int, list[str]]] = {  # how many, of which originals
    "`config.json`": (cases.config, 6000, ["run", "a.png"]),
    "names, files and `SHA256SUMS` of checkpoints": (cases.sums, 700, ["run", "a.png"]),
    "descriptions in checkpoints, with sums that fit": (cases.metadata, 1000, ["run", "a.png"]),
    "`metrics.jsonl`, `.lock`, `.saved`": (cases.metrics, 200, ["run"]),
    "pictures": (cases.pictures, 7000, ["run"]),
    "experiment files": (cases.experiments, 1700, []),
    "`optuna.journal`, `sweep.json`": (cases.journal, 400, ["sweep", "study.py"]),
    "datasets and decoded copies": (cases.data, 1200, ["data"]),
    "IDX files": (cases.idx, 200, []),
    "command lines": (cases.flags, 800, ["run", "study.py", "a.png"]),
    "messages to the writer process": (cases.pipe, 800, ["run", "data"]),
}


def tries(originals: Path, seed: int, share: float) -> Iterator[dict]:
    """Try all kinds of input; a row for each, with how often each outcome came, and an example of what is wrong."""
    for kind, (_, most, _) in KINDS.items():
        numbers = range(round(share * most))
        chunks = [numbers[first : first + CHUNK] for first in numbers[::CHUNK]]
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            found = [*pool.map(functools.partial(_apart, originals, seed, kind), chunks)]
        outcomes = sum((collections.Counter(each["outcomes"]) for each in found), collections.Counter())
        examples = {what: line for each in reversed(found) for what, line in each["examples"].items()}
        yield {"kind": kind, "inputs": outcomes.total(), "seed": seed, "outcomes": outcomes, "examples": examples}


def _apart(originals: Path, seed: int, kind: str, numbers: range) -> dict:
    """`some` in a process of its own."""
    words = ["--only", kind, "--originals", str(originals), "--seed", f"{seed}"]
    words += ["--numbers", f"{numbers.start}", f"{numbers.stop}"]
    child = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, check=True)
    return json.loads(child.stdout.splitlines()[-1])


def some(originals: Path, seed: int, kind: str, numbers: range) -> dict:
    """Try some inputs of one kind."""
    make, _, needs = KINDS[kind]
    outcomes: collections.Counter[str] = collections.Counter()
    examples: dict[str, str] = {}
    with stand_ins(kind):
        for index in numbers:
            with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
                root = Path(name).resolve()
                for need in needs:
                    (shutil.copytree if (originals / need).is_dir() else shutil.copy)(originals / need, root / need)
                case = make(random.Random(f"{seed} {make.__name__} {index}"), root)
                what, line = outcome(case, root)
            outcomes[what] += 1
            if what not in ("used", "refused") or len(numbers) == 1:
                examples.setdefault(what, f"number {index}: {line}")
    return {"outcomes": outcomes, "examples": examples}


def table(rows: list[dict]) -> str:
    """What became of the inputs, counted."""
    about, rows = rows[0], rows[1:]
    lines = ["| random input | tried | used | refused in one line | anything else |", "|---|---|---|---|---|"]
    total: collections.Counter[str] = collections.Counter()
    for row in rows:
        total.update(row["outcomes"])
    again = {row["kind"]: f" (commit `{row['commit']}`)" for row in rows if "commit" in row}  # tried again, alone
    for kind, outcomes in [*((row["kind"], row["outcomes"]) for row in rows), ("all", total)]:
        tried, used, refused = sum(outcomes.values()), outcomes.get("used", 0), outcomes.get("refused", 0)
        numbers = tried, used, refused, tried - used - refused
        lines.append(f"| {kind}{again.get(kind, '')} | {' | '.join(f'{number:,}' for number in numbers)} |")
    return "\n".join([*lines, "", f"{as_markdown(about)}."]) + "\n"


def main() -> None:
    """Try what was asked for, saving the results as they come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="of the inputs")
    parser.add_argument("--only", choices=KINDS, metavar="KIND", help="one kind; prints, and keeps nothing")
    parser.add_argument("--numbers", type=int, nargs=2, default=(0, 1), help="of that kind, from and to")
    parser.add_argument("--originals", type=Path, help="what the inputs are made from; made first if it is missing")
    parser.add_argument("--table", action="store_true", help="only make the table")
    args = parser.parse_args()
    if not args.table:
        with tempfile.TemporaryDirectory() as name:
            originals = args.originals or Path(name)
            if not args.originals:
                make_originals(originals)
            if args.only:
                limit()
                print(json.dumps(some(originals, args.seed, args.only, range(*args.numbers))))
                return
            save_results(LINES, tries(originals, args.seed, args.share))
    TABLE.write_text(table(load_results(LINES)))
    print(TABLE.read_text())


if __name__ == "__main__":
    main()

"""Is anything ever lost? Kills, damage, full disks, databases that vanish and bad input, on real runs and sweeps.

    python experiments/benchmarks/faults.py                 # an hour on 2 cores
    python experiments/benchmarks/faults.py --minutes 1     # a taste: at most a minute or so for each part
    python experiments/benchmarks/faults.py --parts kills   # only this part; the results of the others stay
    python experiments/benchmarks/faults.py --table         # only the table, from results/faults.jsonl

What is disturbed is started again by the same command, over and over, until it ends by itself; then its parameters,
BatchNorm statistics, optimizer state and metrics are compared with what nobody disturbed, bit for bit. Needs Linux and
the test extra. Full disks need the right to mount; the database needs the programs of a PostgreSQL server, and psycopg.
"""

import argparse
import collections
import json
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import faults_database
import faults_disk
import faults_run
import faults_sweep
from provenance import RESULTS, as_markdown, load_results, provenance

LINES, TABLE = RESULTS / "faults.jsonl", RESULTS / "faults.md"
KINDS = {
    "kills": "kills", "distributed": "distributed", "sweep": "sweep", "database": "database", "disk": "disk",
    "halving": "halving", "population": "population", "damages": "damage", "inputs": "bad input",
}  # of lines, by part  # fmt: skip


def measure(part: str, root: Path, rng: random.Random) -> Iterator[dict]:
    """The lines of a part; a single one that says why where this machine lacks what it takes."""
    match part:
        case "inputs":
            yield from faults_run.bad_inputs(root)
        case "damages":
            yield from faults_run.damages(root)
        case "kills":
            yield from faults_run.kills(root, 200, rng)
        case "sweep":
            yield from faults_sweep.sweep_kills(root, 100, rng)
        case "halving" | "population":
            yield from faults_sweep.adapt_kills(root, 50, rng, part)
        case "distributed":
            yield from faults_sweep.distributed_kills(root, 50, rng)
        case "disk" if not faults_disk.may_mount(root):
            yield {"kind": "disk", "skipped": "this user may not mount a small disk"}
        case "disk":
            yield from faults_disk.fill(root)
        case "database" if why := faults_database.missing():
            yield {"kind": "database", "skipped": why}
        case "database":
            yield from faults_sweep.database_kills(root, 20, rng)


def save_parts(parts: list[str], minutes: float, seed: int) -> None:
    """Measure parts, saving each line as it comes, after a line with their provenance; lines of other parts stay."""
    for part in parts:
        kind, until = KINDS[part], time.monotonic() + 60 * minutes
        about = {"kind": "provenance", "of": kind, "seed": seed, **provenance()}
        about["command"] = "python experiments/benchmarks/faults.py"
        rows = load_results(LINES) if LINES.exists() else []
        rows = [row for row in rows if kind not in (row["kind"], row.get("of"))]
        LINES.write_text("".join(json.dumps(row) + "\n" for row in [*rows, about]))
        with tempfile.TemporaryDirectory() as directory:
            for row in measure(part, Path(directory), random.Random(seed)):
                print(json.dumps(row), flush=True)
                with LINES.open("a") as lines:
                    lines.write(json.dumps(row) + "\n")
                if time.monotonic() > until:
                    break


def table(rows: list[dict]) -> str:
    """What happened, counted."""
    of = {kind: [row for row in rows if row["kind"] == kind and "skipped" not in row] for kind in KINDS.values()}
    lines = ["| what was done | how often | what came of it |", "|---|---|---|"]
    lines += [f"| {' | '.join(COUNTED[kind](of[kind]))} |" for kind in KINDS.values() if of[kind]] + [""]
    lines += [f"Left out: {row['kind']}, since {row['skipped']}.\n" for row in rows if "skipped" in row]
    origins: dict[str, list[str]] = {}
    for row in rows:
        if row["kind"] == "provenance" and of[row["of"]]:
            origins.setdefault(f"{as_markdown(row)}; seed {row['seed']}.", []).append(row["of"])
    lines += [f"{', '.join(kinds) + ': ' if len(origins) > 1 else ''}{text}\n" for text, kinds in origins.items()]
    return "\n".join(lines)


def _kills(runs: list[dict]) -> list[str]:
    moments = [kill for row in runs for kill in row["kills"]]
    saving, writers = sum(kill["while_saving"] for kill in moments), sum("writer" in kill["whom"] for kill in moments)
    what = f"`kill -9` of a run at a random moment ({saving} while it was saving, {writers} with its writer process)"
    return [what, f"{len(moments)} kills of {len(runs)} runs", _ends(runs)]


def _distributed(runs: list[dict]) -> list[str]:
    number = sum(len(row["kills"]) for row in runs)
    what = "`kill -9` of one of two processes that train one network"
    return [what, f"{number} kills of {len(runs)} runs", _ends(runs)]


def _ends(runs: list[dict]) -> str:
    lost = sum(row["exit_code"] != 0 for row in runs)
    different = sum(row["exit_code"] == 0 and not row["bit_for_bit"] for row in runs)
    return f"{lost} lost, {different} with other bits than a straight run"


def _sweep(sweeps: list[dict]) -> list[str]:
    whom = collections.Counter(kill for row in sweeps for kill in row["kills"])
    what = f"`kill -9` of a sweep of two workers ({', '.join(f'{name} {n}' for name, n in sorted(whom.items()))})"
    return [what, f"{whom.total()} kills of {len(sweeps)} sweeps", _members(sweeps)]


def _halving(sweeps: list[dict]) -> list[str]:
    number, two = sum(len(row["kills"]) for row in sweeps), sum(row["workers"] == 2 for row in sweeps)
    what = "`kill -9` of a halving with one worker; or with two workers, of one of them or all"
    return [what, f"{number} kills of {len(sweeps)} sweeps, {two} of them with two workers", _members(sweeps)]


def _population(sweeps: list[dict]) -> list[str]:
    number = sum(len(row["kills"]) for row in sweeps)
    what = "`kill -9` of population-based training"
    return [what, f"{number} kills of {len(sweeps)} sweeps", _members(sweeps)]


def _database(sweeps: list[dict]) -> list[str]:
    away = [seconds for row in sweeps for seconds in row["seconds_away"]]
    what = f"the PostgreSQL server of a sweep killed, and away for {min(away)} to {max(away)} s"
    return [what, f"{len(away)} kills under {len(sweeps)} sweeps", _members(sweeps)]


def _members(sweeps: list[dict]) -> str:
    lost, twice, differing = (sum(row[name] for row in sweeps) for name in ("lost", "twice", "differing"))
    number, unlike = sum(row["members"] for row in sweeps), "with other results or bits than in a straight sweep"
    return f"of {number} members {lost} lost, {twice} twice, {differing} {unlike}"


def _disk(rows: list[dict]) -> list[str]:
    full = [row for row in rows if row["exit_code"]]
    errors = [sum(not line.startswith("warning: ") for line in row["stderr"]) for row in full]
    told = sum(row["exit_code"] in (1, 2) and n == 1 for row, n in zip(full, errors, strict=True))
    what = f"the disk full at {len({row['limit'] for row in full})} sizes, then larger"
    equal = sum(row["bit_for_bit"] for row in full)
    ends = f"{told} one error, exit code 1 or 2; then {equal} with the bits of a straight one"
    return [what, f"{len(full)} runs and sweeps", ends]


def _damage(rows: list[dict]) -> list[str]:
    outcomes = collections.Counter(row["outcome"] for row in rows if "already" not in row["outcome"])
    what = "a file of the latest checkpoint truncated, emptied, deleted, or one bit of it flipped"
    return [what, str(outcomes.total()), "; ".join(f"{n} {outcome}" for outcome, n in outcomes.items())]


def _inputs(rows: list[dict]) -> list[str]:
    good = [row for row in rows if row["exit_code"] == 2 and "\n" not in row["message"] and row["untouched"]]
    return ["bad input on the command line", str(len(rows)), f"{len(good)} one line, exit code 2, disk untouched"]


COUNTED = {"bad input": _inputs, "damage": _damage, "kills": _kills, "sweep": _sweep}
COUNTED |= {"distributed": _distributed, "disk": _disk, "database": _database}
COUNTED |= {"halving": _halving, "population": _population}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=[*KINDS], default=[*KINDS])
    parser.add_argument("--minutes", type=float, default=60.0, help="for each part; what has begun then ends by itself")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--table", action="store_true", help="only make the table")
    args = parser.parse_args()
    if not args.table:
        save_parts(args.parts, args.minutes, args.seed)
    TABLE.write_text(table(load_results(LINES)))
    print(TABLE.read_text())

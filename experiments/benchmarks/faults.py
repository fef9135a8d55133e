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
    "inputs": "bad input", "damages": "damage", "kills": "kills", "sweep": "sweep", "distributed": "distributed",
    "disk": "disk", "database": "database",
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
    """Measure parts, saving each line as it comes; lines of other parts stay, with the commit that they came from."""
    for part in parts:
        with tempfile.TemporaryDirectory() as directory:
            until = time.monotonic() + 60 * minutes
            about = provenance() | {"command": "python experiments/benchmarks/faults.py", "seed": seed}
            others = [row for row in load_results(LINES)[1:] if row["kind"] != KINDS[part]] if LINES.exists() else []
            LINES.write_text("".join(json.dumps(row) + "\n" for row in [about, *others]))
            for row in measure(part, Path(directory), random.Random(seed)):
                print(json.dumps(row), flush=True)
                with LINES.open("a") as lines:
                    lines.write(json.dumps(row | {"commit": about["commit"]}) + "\n")
                if time.monotonic() > until:
                    break


def table(rows: list[dict]) -> str:
    """What happened, counted."""
    about, *rows = rows
    of = {kind: [row for row in rows if row["kind"] == kind and "skipped" not in row] for kind in KINDS.values()}
    runs, moments = of["kills"], [kill for row in of["kills"] for kill in row["kills"]]
    saving, writers = sum(kill["while_saving"] for kill in moments), sum("writer" in kill["whom"] for kill in moments)
    damaged = [row for row in of["damage"] if "already" not in row["outcome"]]
    outcomes = collections.Counter(row["outcome"] for row in damaged)
    inputs = of["bad input"]
    good = [row for row in inputs if row["exit_code"] == 2 and "\n" not in row["message"] and row["untouched"]]
    whom = collections.Counter(kill for row in of["sweep"] for kill in row["kills"])
    both, away = of["distributed"], [seconds for row in of["database"] for seconds in row["seconds_away"]]
    full = [row for row in of["disk"] if row["exit_code"]]
    told = sum(row["exit_code"] in (1, 2) and errors(row["stderr"]) == 1 for row in full)
    equal = sum(row["bit_for_bit"] for row in full)
    lines = [
        "| what was done | how often | what came of it |",
        "|---|---|---|",
        f"| `kill -9` of a run at a random moment ({saving} while it was saving, {writers} with its writer process) "
        f"| {len(moments)} kills of {len(runs)} runs | {_ends(runs)} |",
        f"| `kill -9` of one of two processes that train one network "
        f"| {sum(len(row['kills']) for row in both)} kills of {len(both)} runs | {_ends(both)} |",
        f"| `kill -9` of a sweep: {', '.join(f'{name} {n}' for name, n in sorted(whom.items()))} "
        f"| {whom.total()} kills of {len(of['sweep'])} sweeps | {_members(of['sweep'])} |",
        f"| the PostgreSQL server of a sweep killed, and away for {min(away, default=0)} to {max(away, default=0)} s "
        f"| {len(away)} kills under {len(of['database'])} sweeps | {_members(of['database'])} |",
        f"| the disk full at {len({row['limit'] for row in full})} sizes, then larger "
        f"| {len(full)} runs and sweeps | {told} one error, exit code 1 or 2; then {equal} with the right bits |",
        f"| a file of the latest checkpoint truncated, emptied, deleted, or one bit of it flipped | {len(damaged)} "
        f"| {'; '.join(f'{n} {outcome}' for outcome, n in outcomes.items())} |",
        f"| bad input on the command line | {len(inputs)} | {len(good)} one line, exit code 2, disk untouched |",
        "",
        *(f"Left out: {row['kind']} ({row['skipped']}).\n" for row in rows if "skipped" in row),
        f"{as_markdown(about | {'commit': '`, `'.join(dict.fromkeys(row['commit'] for row in rows))})}; "
        f"seed {about['seed']}.",
    ]
    return "\n".join(lines) + "\n"


def errors(stderr: list[str]) -> int:
    """How many errors a command printed; warnings apart. A traceback counts as many."""
    return sum(not line.startswith("warning: ") for line in stderr)


def _ends(runs: list[dict]) -> str:
    """How runs ended that were killed."""
    lost = sum(row["exit_code"] != 0 for row in runs)
    different = sum(row["exit_code"] == 0 and not row["bit_for_bit"] for row in runs)
    return f"{lost} lost, {different} with other bits than a straight run"


def _members(sweeps: list[dict]) -> str:
    """What became of the members of sweeps."""
    lost, twice, differing = (sum(row[name] for row in sweeps) for name in ("lost", "twice", "differing"))
    number, unlike = sum(row["members"] for row in sweeps), "with other results or bits than in a straight sweep"
    return f"of {number} members {lost} lost, {twice} twice, {differing} {unlike}"


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

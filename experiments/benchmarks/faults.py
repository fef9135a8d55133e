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
import json
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import faults_run
from provenance import RESULTS, load_results, provenance

LINES, TABLE = RESULTS / "faults.jsonl", RESULTS / "faults.md"
KINDS = {"inputs": "bad input", "damages": "damage", "kills": "kills"}  # of lines, by part


def measure(part: str, root: Path, rng: random.Random) -> Iterator[dict]:
    """The lines of a part."""
    match part:
        case "inputs":
            yield from faults_run.bad_inputs(root)
        case "damages":
            yield from faults_run.damages(root)
        case "kills":
            yield from faults_run.kills(root, 200, rng)


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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=[*KINDS], default=[*KINDS])
    parser.add_argument("--minutes", type=float, default=60.0, help="for each part; what has begun then ends by itself")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--table", action="store_true", help="only make the table")
    args = parser.parse_args()
    save_parts(args.parts, args.minutes, args.seed)

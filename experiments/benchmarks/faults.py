"""Is anything ever lost? Kills, damage and bad input, on real runs of the real commands.

    python experiments/benchmarks/faults.py              # 20 minutes on 2 cores: kills, damages, bad inputs
    python experiments/benchmarks/faults.py --kills 5    # a taste
    python experiments/benchmarks/faults.py --table      # only the table, from results/faults.jsonl

A run is started and killed (SIGKILL) at random moments, over and over, until it ends by itself; then its parameters,
BatchNorm statistics, optimiser state and metrics are compared with a run that nobody disturbed, bit for bit. Needs the
test extra, whose table of bad input it runs.
"""

import argparse
import collections
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from provenance import RESULTS, as_markdown, load_results, save_results

from mnist_flax.errors import RunError
from mnist_flax.workdir import checkpoint, claim

LINES, TABLE = RESULTS / "faults.jsonl", RESULTS / "faults.md"
TESTS = Path(__file__).parents[2] / "tests"
FLAGS = ["--widths", "64", "64", "--batch-size", "16", "--train-split", "train[:400]", "--eval-split", "test[:400]",
         "--epochs", "60", "--steps-per-call", "4", "--checkpoint-every", "10", "--keep", "3"]  # fmt: skip


def command(name: str, *args: str) -> list[str]:
    """The command line of a program of ours."""
    return [sys.executable, "-m", f"mnist_flax.{name}", *args]


def final(path: Path) -> tuple[list[np.ndarray], list[dict]]:
    """Every array of the last checkpoint, and the metrics without their timings."""
    _, state, _ = checkpoint.restore(claim.checkpoints_dir(path), "latest", identity={}, warn=print)
    lines = [json.loads(row) for row in claim.metrics_file(path).read_text().splitlines()]
    return jax.tree.leaves(state), [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def same(a: tuple[list[np.ndarray], list[dict]], b: tuple[list[np.ndarray], list[dict]]) -> bool:
    """Bit for bit."""
    return a[1] == b[1] and len(a[0]) == len(b[0]) and all(map(lambda x, y: x.tobytes() == y.tobytes(), a[0], b[0]))


def kills(root: Path, straight: Path, number: int, rng: random.Random) -> Iterator[dict]:
    """Kill until `number` is reached, every run to its end; a line a run."""
    want, killed, runs = final(straight), 0, 0
    while killed < number:
        path, runs, moments = root / f"killed-{runs}", runs + 1, []
        while True:
            process = subprocess.Popen(command("train", "--workdir", str(path), *FLAGS), stdout=subprocess.DEVNULL)
            try:
                process.wait(timeout=rng.uniform(0.2, 7.0))
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            directory = claim.checkpoints_dir(path)
            saving = any(directory.glob(".saving-*")) if directory.is_dir() else False
            moments.append({"at_step": max(checkpoint.steps(directory), default=0), "while_saving": saving})
        killed += len(moments)
        equal = process.returncode == 0 and same(final(path), want)
        shutil.rmtree(path)
        yield {"kind": "kills", "kills": moments, "exit_code": process.returncode, "bit_for_bit": equal}


def flip(path: Path) -> None:
    """Change one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "deleted": lambda path: path.unlink(),
    "one bit flipped": flip,
}


def damages(root: Path, straight: Path) -> Iterator[dict]:
    """Every file of the latest checkpoint in every way; a line each."""
    source = claim.checkpoints_dir(straight)
    *_, before, latest = checkpoint.steps(source)
    _, sound, _ = checkpoint.restore(source, before, identity={}, warn=print)
    files = sorted(
        file.relative_to(source / str(latest)) for file in (source / str(latest)).rglob("*") if file.is_file()
    )
    for file in files:
        for way, damage in DAMAGES.items():
            line: dict[str, Any] = {"kind": "damage", "file": file.as_posix(), "way": way}
            if (source / str(latest) / file).stat().st_size == 0 and way != "deleted":
                yield line | {"outcome": "the file is empty already"}
                continue
            copy, told_of = root / "damaged", []
            shutil.copytree(source, copy)
            damage(copy / str(latest) / file)
            try:
                step, state, _ = checkpoint.restore(copy, "latest", identity={}, warn=told_of.append, set_aside=True)
                right = step == before and same((jax.tree.leaves(state), []), (jax.tree.leaves(sound), []))
                aside = (copy / f"corrupt-{latest}").is_dir() and bool(told_of)
                outcome = "named, set aside, the one before loaded" if right and aside else "LOADED WRONG"
            except RunError as error:
                outcome = f"refused: {error}"
            shutil.rmtree(copy)
            yield line | {"outcome": outcome}


def bad_inputs(root: Path) -> Iterator[dict]:
    """The table of the tests, each line as a process of its own."""
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    environ, path = os.environ.copy(), sys.path.copy()
    sys.path.insert(0, str(TESTS))
    from conftest import TINY_FLAGS
    from test_inputs import BAD_ARGUMENTS, snapshot

    sys.path[:] = path
    os.environ.clear()  # `conftest` asks for eight devices; the runs that are killed must not see that
    os.environ.update(environ)
    (root / "FOREIGN").mkdir(parents=True)
    (root / "MANUAL").mkdir()
    (root / "FOREIGN" / "thesis.tex").write_text("precious")
    (root / "FILE").write_text("precious")
    subprocess.run(command("train", "--workdir", str(root / "RUN"), *TINY_FLAGS), check=True, stdout=subprocess.DEVNULL)
    for line in BAD_ARGUMENTS:
        name, *words = line.split()
        args = [word for w in words for word in (TINY_FLAGS if w == "TINY" else [w])]
        before = snapshot(root)
        result = subprocess.run(command(name, *args), cwd=root, env=env, capture_output=True, text=True)
        message = result.stderr.replace(str(root), "...").replace(str(TESTS.parent), "...").strip()
        untouched = snapshot(root) == before
        yield {
            "kind": "bad input",
            "line": line,
            "exit_code": result.returncode,
            "message": message,
            "untouched": untouched,
        }


def table(rows: list[dict]) -> str:
    """What happened, counted."""
    about, rows = rows[0], rows[1:]
    runs = [row for row in rows if row["kind"] == "kills"]
    moments = [kill for row in runs for kill in row["kills"]]
    damaged = [row for row in rows if row["kind"] == "damage" and "already" not in row["outcome"]]
    outcomes = collections.Counter(row["outcome"] for row in damaged)
    inputs = [row for row in rows if row["kind"] == "bad input"]
    good = [row for row in inputs if row["exit_code"] == 2 and "\n" not in row["message"] and row["untouched"]]
    lost = sum(row["exit_code"] != 0 for row in runs)
    different = sum(row["exit_code"] == 0 and not row["bit_for_bit"] for row in runs)
    lines = [
        "| what was done | how often | what came of it |",
        "|---|---|---|",
        f"| `kill -9` at a random moment ({sum(k['while_saving'] for k in moments)} while one was being saved) "
        f"| {len(moments)} kills of {len(runs)} runs | {lost} lost, {different} with other bits than a straight run |",
        f"| a file of the latest checkpoint truncated, emptied, deleted, or one bit of it flipped | {len(damaged)} "
        f"| {'; '.join(f'{n} {outcome}' for outcome, n in outcomes.items())} |",
        f"| bad input on the command line | {len(inputs)} | {len(good)} one line, exit code 2, disk untouched |",
        "",
        f"{as_markdown(about)}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what was asked for, saving each result as it comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--table", action="store_true", help="only make the table")
    args = parser.parse_args()
    if not args.table:
        with tempfile.TemporaryDirectory() as directory:
            root = Path(directory)
            straight = root / "straight"
            subprocess.run(command("train", "--workdir", str(straight), *FLAGS), check=True, stdout=subprocess.DEVNULL)
            killed = kills(root, straight, args.kills, random.Random(args.seed))
            save_results(LINES, itertools.chain(bad_inputs(root / "inputs"), damages(root, straight), killed))
    TABLE.write_text(table(load_results(LINES)))
    print(TABLE.read_text())


if __name__ == "__main__":
    main()

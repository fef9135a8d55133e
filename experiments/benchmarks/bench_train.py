"""How fast is the default run, beside its peers?

The same network, files, batch size and epochs, each program as a process from a cold shell, and ours once more before
each peer, round after round; writes results/bench_train.jsonl and, from it, results/bench_train.md.

    python experiments/benchmarks/bench_train.py            # 3 minutes a round on 2 cores; needs the bench extra
    python experiments/benchmarks/bench_train.py --table    # only the table, from the file
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

from provenance import RESULTS, as_markdown, load_results, save_results

LINES, TABLE = RESULTS / "bench_train.jsonl", RESULTS / "bench_train.md"
PEERS = Path(__file__).parent / "peers"
OURS, QUIET, FLOOR = "mnist_flax", "mnist_flax without figures and TensorBoard", "floor"
PROGRAMS = {
    QUIET: None,  # ours, as OURS is
    "keras-tensorflow": "keras_tutorial.py",
    "keras-jax": "keras_tutorial.py",
    "keras-torch": "keras_tutorial.py",
    "pytorch-fused": "pytorch_loop.py",
    "flax-textbook": "flax_loop.py",
    FLOOR: "floor.py",
}
# Forward and backward products of an epoch: the first layer needs no gradient of its input.
EPOCH_GFLOP = 60_000 * 2 * (2 * 784 * 512 + 3 * 512 * 512 + 3 * 512 * 10) / 1e9


def run(program: str, seed: int) -> dict:
    """One process, from its start to its end."""
    with tempfile.TemporaryDirectory() as directory:
        workdir = Path(directory) / "exp"
        peer = PROGRAMS.get(program)
        line = [str(PEERS / peer)] if peer else ["-m", "mnist_flax.train", "--workdir", str(workdir)]
        line += ["--no-figures", "--no-tensorboard"] if program == QUIET else []
        line += ["--seed", str(seed)] if program != FLOOR else []
        backend = program.removeprefix("keras-") if program.startswith("keras-") else "tensorflow"
        env = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": backend}
        began = time.perf_counter()
        process = subprocess.Popen([sys.executable, *line], env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert process.stdout
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        wall = round(time.perf_counter() - began, 3)
        if status:
            raise SystemExit(f"{program} failed: python {' '.join(line)}")
        measured = {"wall": wall, "peak_memory_mb": round(usage.ru_maxrss / 1024)}
        if peer:
            return json.loads(output.splitlines()[-1]) | measured
        rows = [json.loads(row) for row in (workdir / "metrics.jsonl").read_text().splitlines()]
        seconds, scores = ([row for row in rows if row["split"] == split] for split in ("train", "eval"))
        epochs = {"epoch_seconds": [r["seconds"] for r in seconds], "accuracy": [r["accuracy"] for r in scores]}
        return {"program": program, "seed": seed} | epochs | measured


def in_turn(programs: list[str], rounds: int) -> Iterator[dict]:
    """Ours and a peer, ours and the next: the machine changes its speed, but seldom between two neighbours."""
    run(OURS, 0)  # what is compiled once for all, and the data, before
    for number in range(rounds):
        for program in programs:
            yield {"round": number} | run(OURS, number)
            yield {"round": number} | run(program, number)


def epoch_of(row: dict) -> float:
    """Seconds of an epoch's training: the median, without the first, in which programs compile."""
    return statistics.median(row["epoch_seconds"][1:])


def spread(values: list[float]) -> str:
    """Median and extremes."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def table(rows: list[dict]) -> str:
    """Medians over the rounds, and ours divided by each peer's, pair by pair."""
    about, runs = rows[0], rows[1:]
    pairs: dict[str, list[tuple[dict, dict]]] = {}
    for ours, peer in zip(runs[::2], runs[1::2], strict=True):
        pairs.setdefault(peer["program"], []).append((ours, peer))
    floors = pairs.pop(FLOOR, [])
    every = {OURS: [(row, row) for row in runs[::2]]} | pairs
    lines = [
        "| program | n | epoch (s) | ours / it | whole process (s) | ours / it | peak memory (MB) | test accuracy |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for program, both in every.items():
        its = [peer for _, peer in both]
        cells = [program, str(len(its))]
        for value in (epoch_of, lambda row: row["wall"]):
            ratios = [value(ours) / value(peer) for ours, peer in both]
            cells += [f"{statistics.median(map(value, its)):.2f}", "1" if program == OURS else spread(ratios)]
        cells.append(f"{statistics.median(row['peak_memory_mb'] for row in its):.0f}")
        cells.append(f"{100 * statistics.mean(row['accuracy'][-1] for row in its):.2f} %")
        lines.append(f"| {' | '.join(cells)} |")
    if floors:
        best = [max(floor["gflops"].values()) for _, floor in floors]
        shares = [100 * EPOCH_GFLOP / epoch_of(ours) / rate for (ours, _), rate in zip(floors, best, strict=True)]
        lines += [
            "",
            f"The products of an epoch are {EPOCH_GFLOP:.1f} GFLOP. The best product of 2048 x 2048 ran at "
            f"{spread(best)} GFLOP/s; our epochs just before, all in all, at {spread(shares)} % of it.",
        ]
    peers = {k: v for row in runs for k, v in row.get("versions", {}).items() if k not in about["versions"]}
    lines += ["", f"{as_markdown(about)}; the peers: {', '.join(f'{k} {v}' for k, v in peers.items())}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what was asked for, saving each result as it comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--table", action="store_true", help="only make the table")
    args = parser.parse_args()
    if not args.table:
        save_results(LINES, in_turn(args.programs, args.rounds))
    TABLE.write_text(table(load_results(LINES)))
    print(TABLE.read_text())


if __name__ == "__main__":
    main()

"""How time and memory grow with width, depth, batch, population, dataset and devices.

Each point is a process of its own, measured twice, minutes apart: a machine that others use too is slow at times.
Writes results/cost.jsonl and, from the faster of each two, results/cost.md and cost.png.

    python experiments/benchmarks/cost.py            # 14 minutes on 2 cores
    python experiments/benchmarks/cost.py --table    # only the table and the figure, from the file
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from provenance import RESULTS, as_markdown, load_results, save_results

LINES, TABLE, FIGURE = (RESULTS / f"cost.{suffix}" for suffix in ("jsonl", "md", "png"))
BASE = {"width": 512, "depth": 2, "batch": 128, "population": 1, "examples": 60_000, "devices": 1}
POINTS: dict[str, list[dict[str, int]]] = {
    "width": [{"width": 2**k} for k in range(7, 14)],
    "depth": [{"depth": depth} for depth in (1, 2, 4, 8, 16)],
    "batch size": [{"batch": 2**k} for k in range(4, 14)],
    "population": [{"population": 4**k} for k in range(6)],
    "dataset size": [{"examples": n} for n in (15_000, 60_000, 240_000, 960_000)],
    "devices, one batch": [{"devices": n, "batch": 1024} for n in (1, 2, 4, 8)],
    "devices, 128 each": [{"devices": n, "batch": 128 * n} for n in (1, 2, 4, 8)],
}


WHY = """Where time grows faster than work, and why; the first two are what the sizes suggest, not measured apart:

- width from 4,096: weights and Adam's moments, 12 bytes a weight and as much again on the way, no longer fit the cache
  that the cores share (32 MB), so that the update should run at the speed of memory.
- batch from 2,048: nor do the activations, 4 MB and more for each layer and pass.
- population: a member's state is copied when its turn comes and when it ends, once a call; here a call has 16 steps, in
  a sweep 67. With 2 or 3 steps a call a step of 256 members took 1.1 s. A population of 1 is the lone program.
- devices: these are virtual, on two cores. They have no more arithmetic than one, and add up their gradients, each with
  Adam's whole update to do: what is seen here is the price of splitting, and no gain from it."""


def measure(point: dict[str, int]) -> dict[str, float]:
    """Milliseconds a step, of the fastest of several calls, and peak memory, in this process."""
    import jax

    jax.config.update("jax_num_cpu_devices", point["devices"])
    import numpy as np

    from mnist_flax import compiled, placement
    from mnist_flax.config import Config
    from mnist_flax.program import Program
    from mnist_flax.state import as_arrays, init_state

    config = Config(widths=(point["width"],) * point["depth"], l2_layers=(1,), batch_norm_layers=(1,))
    program, hparams = Program(config.static(), (28, 28, 1), 10, 469), as_arrays(config.hparams)
    rng, shape, members = np.random.default_rng(0), (28, 28, 1), point["population"]
    split = (
        rng.integers(0, 256, (point["examples"], *shape), np.uint8),
        rng.integers(0, 10, point["examples"], np.int32),
    )
    work = flops(point)
    steps = 16 if members > 1 else max(2, min(64, math.ceil(2e10 / work)))  # members copy their state once a call
    indices = rng.integers(0, point["examples"], (steps, point["batch"]), np.int32)
    if members == 1:
        mesh = placement.data_mesh(point["batch"])
        placed, indices = placement.replicate((hparams, split), mesh), placement.shard_batches(indices, mesh)
        state = placement.replicate(init_state(hparams, program=program), mesh)
        train: Any = partial(compiled.train_steps, program=program)
    else:
        mesh = placement.member_mesh(members)
        many = jax.tree.map(lambda leaf: np.repeat(leaf[None], members, axis=0), hparams)
        placed = placement.shard_members(many, mesh), placement.replicate(split, mesh)
        state = compiled.init_members(placed[0], program=program, mesh=mesh)
        indices = placement.shard_members(np.repeat(indices[None], members, axis=0), mesh)
        train = partial(compiled.train_members, program=program, mesh=mesh, at_once=None)
    times, began = [], time.perf_counter()
    while len(times) < 3 or (time.perf_counter() - began < 6 and len(times) < 30):
        start = time.perf_counter()
        state, metrics = train(state, *placed, indices)
        jax.block_until_ready((state, metrics))
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"milliseconds": 1000 * min(times[1:]) / steps, "peak_memory_mb": round(peak)}


def flops(point: dict[str, int]) -> float:
    """Of the products of a step, forward and backward, of all members."""
    width, inner = point["width"], point["depth"] - 1
    weights = 2 * 784 * width + 3 * inner * width**2 + 3 * 10 * width  # the first layer's input needs no gradient
    return 2.0 * point["batch"] * weights * point["population"]


def points() -> Iterator[dict[str, Any]]:
    """Every point, measured; and all of them again."""
    for axis, change in 2 * [(axis, change) for axis, changes in POINTS.items() for change in changes]:
        point = BASE | change
        line = [sys.executable, __file__, "--one", json.dumps(point)]
        output = subprocess.run(line, check=True, capture_output=True).stdout
        yield {"axis": axis} | point | {"flops": flops(point)} | json.loads(output.splitlines()[-1])


def faster(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The faster measurement of each point."""
    best: dict[Any, dict[str, Any]] = {}
    for row in rows[1:]:
        point = row["axis"], value_of(row)
        best[point] = min(best.get(point, row), row, key=lambda row: row["milliseconds"])
    return [*best.values()]


def value_of(row: dict[str, Any]) -> int:
    """Where a row stands on its axis."""
    axis = str(row["axis"])
    return row[{"batch size": "batch", "dataset size": "examples"}.get(axis, axis.split(",")[0])]


def table(rows: list[dict[str, Any]]) -> str:
    """Every point; how much dearer than proportional it is than the one before."""
    about, points = rows[0], faster(rows)
    lines = [
        "| axis | value | a step (ms) | GFLOP/s of products | growth of time / of work | peak memory (MB) |",
        "|---|---|---|---|---|---|",
    ]
    before: dict[str, Any] = {}
    for row in points:
        rate = row["flops"] / row["milliseconds"] / 1e6
        dearer = ""
        if before.get("axis") == row["axis"]:
            dearer = f"{row['milliseconds'] / before['milliseconds'] / (row['flops'] / before['flops']):.2f}"
        shown = f"{row['milliseconds']:,.0f}" if row["milliseconds"] > 100 else f"{row['milliseconds']:.3g}"
        numbers = f"{shown} | {rate:.0f} | {dearer} | {row['peak_memory_mb']:,}"
        lines.append(f"| {row['axis']} | {value_of(row):,} | {numbers} |")
        before = row
    large = [row for row in points if row["axis"] == "population"][-2:]
    each = (large[1]["peak_memory_mb"] - large[0]["peak_memory_mb"]) / (large[1]["population"] - large[0]["population"])
    fits = int((24 * 1024 - large[0]["peak_memory_mb"]) / each) + large[0]["population"]
    lines += [
        "",
        f"A member takes {each:.0f} MB: by extrapolation a population of {fits:,} fits 24 GB.",
        "",
        WHY,
        "",
        f"{as_markdown(about)}.",
    ]
    return "\n".join(lines) + "\n"


def draw(rows: list[dict[str, Any]]) -> None:
    """Milliseconds a step against every axis, with the line of proportion through the last point."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 4).ravel()
    for axes_of, axis in zip(axes, POINTS, strict=False):
        mine = [row for row in faster(rows) if row["axis"] == axis]
        x, y = [value_of(row) for row in mine], [row["milliseconds"] for row in mine]
        ideal = [y[-1] * row["flops"] / mine[-1]["flops"] for row in mine]
        axes_of.loglog(x, ideal, "--", color="0.6", base=2, label="in proportion to the work")
        axes_of.loglog(x, y, "o-", color="#0072B2", base=2, label="a step (ms)")
        axes_of.set(title=axis, ylim=(min(y) / 3, max(y) * 2))
        axes_of.grid(color="0.9")
        axes_of.set_xticks(x, [f"{value:,}" for value in x], rotation=60, size=8)
        axes_of.set_yticks(
            ticks := [n * 10**k for k in range(-1, 4) for n in (1, 2, 5) if min(y) / 2 < n * 10**k < max(y) * 2]
        )
        axes_of.set_yticklabels([f"{tick:g}" for tick in ticks], size=8)
    axes[7].set_axis_off()
    axes[7].legend(*axes[0].get_legend_handles_labels(), loc="center", frameon=False)
    figure.suptitle("Milliseconds a step on two cores, by what grows")
    figure.savefig(FIGURE)


def main() -> None:
    """Measure what was asked for, saving each result as it comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only make the table and the figure")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(json.loads(args.one))))
        return
    if not args.table:
        save_results(LINES, points())
    rows = load_results(LINES)
    TABLE.write_text(table(rows))
    draw(rows)
    print(TABLE.read_text())


if __name__ == "__main__":
    main()

"""Where the time of a training step goes: the default step without one part after another, and its products alone.

    python experiments/benchmarks/step_parts.py            # 5 minutes on 2 cores
    python experiments/benchmarks/step_parts.py --table    # only the table, from results/step_parts.jsonl

Every variant is compiled first; then all take their turn in each round, so that all meet the same machine. A round's
ratio is the variant's time divided by the whole step's in that round.
"""

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from device_parts import program_and_splits
from provenance import RESULTS, as_markdown, load_results, save_results

from mnist_flax import compiled, model, steps
from mnist_flax.config import Config
from mnist_flax.data.batches import epoch_batches
from mnist_flax.model import Dropout
from mnist_flax.program import Program
from mnist_flax.state import as_arrays, init_state

STEPS = 67
LINES = RESULTS / "step_parts.jsonl"
Call = Callable[[], Any]


# What is replaced while a variant is compiled.
VARIANTS: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "the whole step": ({}, []),
    "without dropout": ({}, [(Dropout, "__call__", lambda self, x, rate: x)]),
    "without dropout's random bits": ({}, [(model, "random_bits", lambda key, shape: jnp.zeros(shape, jnp.uint32))]),
    "with JAX's random bits": (
        {},
        [(model, "random_bits", lambda key, shape: jax.random.bits(key, shape, jnp.uint32))],
    ),
    "without BatchNorm": ({"batch_norm_layers": ()}, []),
    "without L2": ({"l2_layers": ()}, []),
    "without the metrics' L2 sum": ({}, [(Program, "l2_sum", lambda self, params: jnp.zeros(()))]),
    "without the gradient's norm": ({}, [(optax.tree, "norm", lambda tree: jnp.zeros(()))]),
    "SGD instead of Adam": ({}, [(optax, "scale_by_adam", lambda **_: optax.identity())]),
    "one batch again and again": (
        {},
        [(compiled, "take", lambda split, indices: steps.Batch(split[0][:128], split[1][:128], indices >= 0))],
    ),
}


def variant(changes: dict[str, Any], patches: list[Any], config: Config) -> Call:
    """A call of 67 steps of the default run, compiled with some parts of it replaced."""
    program, (train, _) = program_and_splits(replace(config, **changes))
    hparams = as_arrays(config.hparams)
    indices = epoch_batches(60_000, config.batch_size, 0, 0)[:STEPS]
    with contextlib.ExitStack() as stack:
        for where, name, what in patches:
            stack.enter_context(mock.patch.object(where, name, what))
        state = init_state(hparams, program=program)
        jax.clear_caches()
        run = compiled.train_steps.lower(state, hparams, train, indices, program=program).compile()
    train, hparams, indices = jax.device_put((train, hparams, indices))
    return _calls(lambda state: run(state, hparams, train, indices)[0], state)


def products(config: Config) -> Call:
    """The five products of the hidden layers, forward and backward, and their SGD updates; nothing else."""
    first, second = config.widths
    rng = np.random.default_rng(0)
    kernels = tuple(
        jnp.asarray(rng.normal(size=shape, scale=0.02), jnp.float32) for shape in ((784, first), (first, second))
    )
    inputs = jnp.asarray(rng.normal(size=(STEPS, config.batch_size, 784)), jnp.float32)
    cotangent = jnp.asarray(rng.normal(size=(config.batch_size, second)), jnp.float32)

    def run(kernels: Any, inputs: Any) -> Any:
        def body(kernels: Any, x: Any) -> tuple[Any, Any]:
            one, two = kernels
            hidden = x @ one
            out = cotangent + 1e-9 * (hidden @ two)  # so that the product is needed
            back = out @ two.T
            return (one - 1e-6 * (x.T @ back), two - 1e-6 * (hidden.T @ out)), None

        return jax.lax.scan(body, kernels, inputs)[0]

    compiled_run = jax.jit(run, donate_argnums=0, compiler_options=compiled.COMPILER_OPTIONS)
    return _calls(lambda kernels: compiled_run(kernels, inputs), kernels)


def _calls(run: Callable[[Any], Any], state: Any) -> Call:
    held = [jax.device_put(state)]

    def call() -> None:
        held[0] = run(held[0])
        jax.block_until_ready(held[0])

    call()
    return call


def measure(rounds: int) -> Iterator[dict[str, Any]]:
    """The times of the whole step without one part after another."""
    config = Config()
    calls = {"products and SGD alone": products(config)}
    yield from in_turn(calls | {name: variant(*parts, config) for name, parts in VARIANTS.items()}, rounds)


def in_turn(calls: dict[str, Call], rounds: int) -> Iterator[dict[str, Any]]:
    """The times of all calls, in milliseconds a step, in the order in which they were measured."""
    for index in range(rounds):
        times = {}
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            times[name] = 1000 * (time.perf_counter() - began) / STEPS
        yield {"round": index, "ms": times}


def table(results: list[dict[str, Any]]) -> str:
    """The Markdown table of the measurements."""
    about, *rows = results
    lines = ["| step | ms, median | the whole step's share, median (quartiles) |", "|---|---|---|"]
    for name in rows[0]["ms"]:
        times = [row["ms"][name] for row in rows]
        shares = [row["ms"][name] / row["ms"]["the whole step"] for row in rows]
        low, middle, high = statistics.quantiles(shares, n=4)
        lines.append(f"| {name} | {statistics.median(times):.2f} | {middle:.2f} ({low:.2f} to {high:.2f}) |")
    return "\n".join(lines) + f"\n\n{len(rows)} rounds of {STEPS} steps each. {as_markdown(about)}.\n"


def main() -> None:
    """Measure, or make the table from what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--table", action="store_true", help="only make the table again")
    args = parser.parse_args()
    if not args.table:
        save_results(LINES, measure(args.rounds))
    text = table(load_results(LINES))
    LINES.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

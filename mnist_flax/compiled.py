"""The compiled programs: K training steps a call, or an evaluation, for one run or for a population.

    driver = run_driver(config, program, train_split, eval_split, mesh)
    state = driver.init()
    state, metrics = driver.train(state, driver.batches(epoch)[:67])
    metrics, logits = driver.evaluate(state)

jit, scan, vmap, donation and sharding are applied here and nowhere else. The members of a population differ in their
hyperparameters and seeds alone. They are spread over the devices; on each they are computed by `vmap`, `at_once` of
them, or one after another: a CPU gains nothing from wider arrays.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from mnist_flax import placement
from mnist_flax.config import Config, Hyperparams
from mnist_flax.data.batches import Split, epoch_batches, eval_batches
from mnist_flax.metrics import Metrics
from mnist_flax.program import Program
from mnist_flax.state import TrainState, as_arrays, init_state
from mnist_flax.steps import eval_step, take, train_step

# XLA for CPUs uses half of AVX-512 unless told, and copies a kernel that it could read before it is overwritten. Other
# processors take no notice.
COMPILER_OPTIONS: dict[str, Any] = {
    "xla_cpu_prefer_vector_width": 512,
    "xla_cpu_copy_insertion_use_region_analysis": True,
}


@dataclass(frozen=True)
class Driver:
    """What the loop calls. Every function takes and gives a state that is placed on the devices."""

    init: Callable[[], Any]
    """The state before the first step."""
    place: Callable[[Any], Any]
    """A state of numpy arrays, from a checkpoint, on the devices."""
    batches: Callable[[int], np.ndarray]
    """The batches of indices of an epoch, counted from 0: int32 [..., S, B]."""
    train: Callable[[Any, np.ndarray], tuple[Any, Metrics]]
    """Begins the steps of int32 [..., K, B] batches; the state is donated."""
    evaluate: Callable[[Any], tuple[Metrics, Any]]
    """Scores a state; with its logits [K, B, C], or None."""


def run_driver(config: Config, program: Program, train_split: Split, eval_split: Split, mesh: Mesh) -> Driver:
    """The calls of one run, its batches split over all devices."""
    place = functools.partial(placement.replicate, mesh=mesh)
    hparams = as_arrays(config.hparams)
    placed, train_arrays, eval_arrays = map(place, (hparams, tuple(train_split), tuple(eval_split)))
    order = placement.shard_batches(eval_batches(len(eval_split.labels), config.eval_batch_size), mesh)
    return Driver(
        init=lambda: place(init_run(hparams, program=program)),
        place=place,
        batches=lambda epoch: epoch_batches(len(train_split.labels), config.batch_size, config.hparams.seed, epoch),
        train=lambda state, batches: train_steps(
            state, placed, train_arrays, placement.shard_batches(batches, mesh), program=program
        ),
        evaluate=lambda state: placement.addressable(eval_steps(state, placed, eval_arrays, order, program=program)),
    )


def population_driver(configs: list[Config], program: Program, train_split: Split, eval_split: Split) -> Driver:
    """The calls of a population; leaves of its state are [P, ...], one member for each config, plus filling.

    The configs differ in their hyperparameters alone. The population is filled up to a multiple of the devices by
    copies of the first member, whose numbers nobody reads.
    """
    config, mesh = configs[0], placement.member_mesh(len(configs))
    filling = -len(configs) % mesh.size
    # A CPU's cores are busy with one member each; wide accelerators want many at once.
    at_once = None if mesh.devices.flat[0].platform == "cpu" else -(-len(configs) // mesh.size)
    static: dict[str, Any] = {"program": program, "mesh": mesh, "at_once": at_once}
    shard = functools.partial(placement.shard_members, mesh=mesh)
    filled = configs + configs[:1] * filling
    hparams = shard(_stack([as_arrays(each.hparams) for each in filled]))
    train_arrays, eval_arrays = placement.replicate((tuple(train_split), tuple(eval_split)), mesh)
    order = placement.replicate(eval_batches(len(eval_split.labels), config.eval_batch_size), mesh)

    def batches(epoch: int) -> np.ndarray:
        seeds = [each.hparams.seed for each in filled]
        return np.stack([epoch_batches(len(train_split.labels), config.batch_size, seed, epoch) for seed in seeds])

    return Driver(
        init=lambda: init_members(hparams, program=program, mesh=mesh),
        place=lambda states: shard(_stack(states + states[:1] * filling)),
        batches=batches,
        train=lambda state, batches: train_members(state, hparams, train_arrays, shard(batches), **static),
        evaluate=lambda state: (eval_members(state, hparams, eval_arrays, order, **static), None),
    )


init_run = jax.jit(init_state, static_argnames=("program",))


def scan_steps(
    state: TrainState, hparams: Hyperparams, split: tuple[Array, Array], indices: Array, *, program: Program
) -> tuple[TrainState, Metrics]:
    """K updates. `indices` is int32 [K, B], the metrics' leaves are [K]."""

    def body(state: TrainState, batch_indices: Array) -> tuple[TrainState, Metrics]:
        return train_step(state, hparams, take(split, batch_indices), program=program)

    return jax.lax.scan(body, state, indices)


# In one call. The state is donated: an event's state is gone once the loop goes on.
train_steps = jax.jit(
    scan_steps, static_argnames=("program",), donate_argnames=("state",), compiler_options=COMPILER_OPTIONS
)


@functools.partial(jax.jit, static_argnames=("program",))
def eval_steps(
    state: TrainState, hparams: Hyperparams, split: tuple[Array, Array], indices: Array, *, program: Program
) -> tuple[Metrics, Array]:
    """Every example of int32 [K, B] `indices` once; the metrics' leaves are [K], the logits [K, B, C]."""
    return jax.lax.map(lambda batch: eval_step(state, hparams, take(split, batch), program=program), indices)


@functools.partial(jax.jit, static_argnames=("program", "mesh"))
def init_members(hparams: Hyperparams, *, program: Program, mesh: Mesh) -> TrainState:
    """The state of every member before its first step; leaves [P, ...]."""
    return _each(lambda member, _: init_state(member, program=program), mesh, None)(hparams, None)


# The state is donated, as in `train_steps`.
@functools.partial(
    jax.jit,
    static_argnames=("program", "mesh", "at_once"),
    donate_argnames=("state",),
    compiler_options=COMPILER_OPTIONS,
)
def train_members(
    state: TrainState, hparams: Hyperparams, split: tuple[Array, Array], indices: Array, *,
    program: Program, mesh: Mesh, at_once: int | None,
) -> tuple[TrainState, Metrics]:  # fmt: skip
    """K updates of every member.

    Args:
      state: leaves [P, ...].
      hparams: leaves [P].
      split: images and labels, the same for all.
      indices: int32 [P, K, B], each member's own order.
      program: of all members.
      mesh: the devices over which the members are spread; P is a multiple of their number.
      at_once: members that one device computes together; None for one after another.

    Returns:
      The next state, and metrics with leaves [P, K].
    """

    def member(member: tuple[TrainState, Hyperparams, Array], split: tuple[Array, Array]) -> tuple[TrainState, Metrics]:
        state, hparams, indices = member
        return scan_steps(state, hparams, split, indices, program=program)

    return _each(member, mesh, at_once)((state, hparams, indices), split)


@functools.partial(jax.jit, static_argnames=("program", "mesh", "at_once"))
def eval_members(
    state: TrainState, hparams: Hyperparams, split: tuple[Array, Array], indices: Array, *,
    program: Program, mesh: Mesh, at_once: int | None,
) -> Metrics:  # fmt: skip
    """Every example of int32 [K, B] `indices` once for every member; the metrics' leaves are [P, K]."""

    def member(member: tuple[TrainState, Hyperparams], shared: tuple[tuple[Array, Array], Array]) -> Metrics:
        return eval_steps(*member, *shared, program=program)[0]

    return _each(member, mesh, at_once)((state, hparams), (split, indices))


def _each(member: Callable[[Any, Any], Any], mesh: Mesh, at_once: int | None) -> Callable[[Any, Any], Any]:
    """`member(mine, shared)` over the first axis of `mine`: spread over the devices, `at_once` of them by `vmap`."""

    def on_device(mine: Any, shared: Any) -> Any:
        return jax.lax.map(lambda each: member(each, shared), mine, batch_size=at_once)

    specs = PartitionSpec("member"), PartitionSpec()
    return jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=specs[0])


def _stack(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)

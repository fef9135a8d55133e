"""The compiled functions: K training steps a call, or an evaluation, for one run or for a population.

    state = init_run(hparams, program=program)
    state, metrics = train_steps(state, hparams, split, indices, program=program)
    metrics, logits = eval_steps(state, hparams, split, indices, program=program)

jit, scan, vmap, donation and sharding are applied here and nowhere else; `drivers` gives these functions their data.
The members of a population differ in their hyperparameters and seeds alone. They are spread over the devices; on each
they are computed together by `vmap`, or one after another: a CPU gains nothing from wider arrays.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mnist_flax.config import Hyperparams
from mnist_flax.metrics import Metrics
from mnist_flax.model import BATCH_NORM_MOMENTUM
from mnist_flax.program import Program
from mnist_flax.state import TrainState, inference_variables, init_state
from mnist_flax.steps import eval_step, take, train_step

# XLA for CPUs uses half of AVX-512 unless told, and copies a kernel that it could read before it is overwritten. Other
# processors take no notice.
COMPILER_OPTIONS: dict[str, Any] = {
    "xla_cpu_prefer_vector_width": 512,
    "xla_cpu_copy_insertion_use_region_analysis": True,
}

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


@functools.partial(jax.jit, static_argnames=("program",))
def measure_batch_norm(state: TrainState, split: tuple[Array, Array], indices: Array, *, program: Program) -> Any:
    """BatchNorm's statistics under the weights of inference, over all examples of int32 [K, B] `indices`.

    Each batch is normalised by its own statistics, without noise and dropout, as in Wu & Johnson, arXiv 2105.07576,
    section 3.
    """
    variables = inference_variables(state) | {"batch_stats": jax.tree.map(jnp.zeros_like, state.batch_stats)}
    quiet = dataclasses.replace(program, static=dataclasses.replace(program.static, noise_at="none"))
    no_unit = {"rngs": {"dropout": jax.random.key(0)}, "dropout_rate": 0.0}  # is dropped, whatever the key

    def of_batch(batch_indices: Array) -> tuple[Array, Any]:
        batch = take(split, batch_indices)
        _, updated = quiet.model.apply(
            variables, batch.images, mask=batch.mask, train=True, mutable=["batch_stats"], **no_unit
        )
        # This share of a batch's statistics is added to the old ones, here 0.
        own = jax.tree.map(lambda leaf: leaf / (1 - BATCH_NORM_MOMENTUM), updated.get("batch_stats", {}))
        return jnp.sum(batch.mask), own

    examples, of_batches = jax.lax.map(of_batch, indices)  # [K], [K, units]
    pooled = {}
    for layer, own in of_batches.items():
        mean = jnp.average(own["mean"], axis=0, weights=examples)
        spread = own["var"] + jnp.square(own["mean"] - mean[None])
        pooled[layer] = {"mean": mean, "var": jnp.average(spread, axis=0, weights=examples)}
    return pooled


@functools.partial(jax.jit, static_argnames=("program", "mesh"))
def init_members(hparams: Hyperparams, *, program: Program, mesh: Mesh) -> TrainState:
    """The state of every member before its first step; leaves [P, ...]."""
    return _each(lambda member, _: init_state(member, program=program), mesh, None)(hparams, None)


@functools.partial(jax.jit, static_argnames=("program", "mesh"))
def measure_members(
    state: TrainState, split: tuple[Array, Array], indices: Array, *, program: Program, mesh: Mesh
) -> Any:
    """As `measure_batch_norm`, of every member; `indices` is int32 [P, K, B], leaves of the statistics [P, units]."""

    def member(member: tuple[TrainState, Array], split: tuple[Array, Array]) -> Any:
        state, indices = member
        return measure_batch_norm(state, split, indices, program=program)

    return _each(member, mesh, None)((state, indices), split)


@functools.partial(jax.jit, static_argnames=("mesh",))
def copy_members(state: TrainState, source: Array, *, mesh: Mesh) -> TrainState:
    """Every member's state is that of its `source`, int [P]."""
    copied = jax.tree.map(lambda leaf: leaf[source], state)
    return jax.lax.with_sharding_constraint(copied, NamedSharding(mesh, PartitionSpec("member")))


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
    """K updates of every member, `at_once` of a device's together (None: one after another).

    Leaves of state, hparams and `indices`, int32 [P, K, B], begin with P, a multiple of the mesh's devices; those of
    the metrics are [P, K]. The split is the same for all.
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

"""Many networks trained as one compiled program: the jitted functions of `fit`, over members.

    state, metrics = train_members(state, hparams, split, indices, model=model, make_tx=make_tx, mesh=mesh)

Members differ in their hyperparameters and seeds alone. They are spread over the devices; on each they are computed by
`vmap`, `at_once` of them, or one after another: a CPU has nothing to gain from wider arrays.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from mnist_flax import fit
from mnist_flax.config import Hyperparams
from mnist_flax.metrics import Metrics
from mnist_flax.model import MLP
from mnist_flax.state import MakeTx, TrainState, init_state


@functools.partial(jax.jit, static_argnames=("model", "make_tx", "image_shape", "mesh"))
def init_members(
    hparams: Hyperparams, *, model: MLP, make_tx: MakeTx, image_shape: tuple[int, ...], mesh: Mesh
) -> TrainState:
    """The state of every member before its first step; leaves [P, ...]."""

    def member(hparams: Hyperparams, _: None) -> TrainState:
        return init_state(hparams, model=model, make_tx=make_tx, image_shape=image_shape)

    return _each(member, mesh, None)(hparams, None)


# The state is donated, as in `fit`.
@functools.partial(
    jax.jit,
    static_argnames=("model", "make_tx", "mesh", "at_once"),
    donate_argnames=("state",),
    compiler_options=fit.COMPILER_OPTIONS,
)
def train_members(
    state: TrainState, hparams: Hyperparams, split: tuple[Array, Array], indices: Array, *,
    model: MLP, make_tx: MakeTx, mesh: Mesh, at_once: int | None,
) -> tuple[TrainState, Metrics]:  # fmt: skip
    """K updates of every member.

    Args:
      state: leaves [P, ...].
      hparams: leaves [P].
      split: images and labels, the same for all.
      indices: int32 [P, K, B], each member's own order.
      model: of all members.
      make_tx: of all members.
      mesh: the devices over which the members are spread; P is a multiple of their number.
      at_once: members that one device computes together; None for one after another.

    Returns:
      The next state, and metrics with leaves [P, K].
    """

    def member(member: tuple[TrainState, Hyperparams, Array], split: tuple[Array, Array]) -> tuple[TrainState, Metrics]:
        state, hparams, indices = member
        return fit.scan_steps(state, hparams, split, indices, model=model, make_tx=make_tx)

    return _each(member, mesh, at_once)((state, hparams, indices), split)


@functools.partial(jax.jit, static_argnames=("model", "mesh", "at_once"))
def eval_members(
    state: TrainState, hparams: Hyperparams, split: tuple[Array, Array], indices: Array, *,
    model: MLP, mesh: Mesh, at_once: int | None,
) -> Metrics:  # fmt: skip
    """Every example of int32 [K, B] `indices` once for every member; the metrics' leaves are [P, K]."""

    def member(member: tuple[TrainState, Hyperparams], shared: tuple[tuple[Array, Array], Array]) -> Metrics:
        return fit.eval_steps(*member, *shared, model=model)[0]

    return _each(member, mesh, at_once)((state, hparams), (split, indices))


def _each(member: Callable[[Any, Any], Any], mesh: Mesh, at_once: int | None) -> Callable[[Any, Any], Any]:
    """`member(mine, shared)` over the first axis of `mine`: spread over the devices, `at_once` of them by `vmap`."""

    def on_device(mine: Any, shared: Any) -> Any:
        return jax.lax.map(lambda each: member(each, shared), mine, batch_size=at_once)

    specs = PartitionSpec("member"), PartitionSpec()
    return jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=specs[0])

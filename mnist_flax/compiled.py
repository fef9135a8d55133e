"""The compiled programs: K training steps a call, or an evaluation, for one run or for a population.

    driver = RunDriver(config, program, train_split, eval_split, mesh)
    state = driver.init()
    state, metrics = driver.train(state, driver.batches(epoch)[:67])
    metrics, logits = driver.evaluate(state)

jit, scan, vmap, donation and sharding are applied here and nowhere else. The members of a population differ in their
hyperparameters and seeds alone. They are spread over the devices; on each they are computed together by `vmap`, or one
after another: a CPU gains nothing from wider arrays.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from mnist_flax.config import Config, Hyperparams
from mnist_flax.data.batches import Split, epoch_batches, eval_batches
from mnist_flax.metrics import Metrics
from mnist_flax.placement import addressable, member_mesh, replicate, shard_batches, shard_members
from mnist_flax.program import Program
from mnist_flax.state import TrainState, as_arrays, init_state
from mnist_flax.steps import eval_step, take, train_step

# XLA for CPUs uses half of AVX-512 unless told, and copies a kernel that it could read before it is overwritten. Other
# processors take no notice.
COMPILER_OPTIONS: dict[str, Any] = {
    "xla_cpu_prefer_vector_width": 512,
    "xla_cpu_copy_insertion_use_region_analysis": True,
}


class RunDriver:
    """The calls of one run, its batches split over all devices. Every state is placed on the devices."""

    def __init__(self, config: Config, program: Program, train_split: Split, eval_split: Split, mesh: Mesh) -> None:
        self._config, self._program, self._mesh = config, program, mesh
        self._examples, hparams = len(train_split.labels), as_arrays(config.hparams)
        self._hparams, self._train, self._eval = map(self.place, (hparams, tuple(train_split), tuple(eval_split)))
        self._eval_batches = eval_batches(len(eval_split.labels), config.eval_batch_size)  # [K, B]
        self._order = shard_batches(self._eval_batches, mesh)

    def init(self) -> Any:
        """The state before the first step."""
        return self.place(init_run(as_arrays(self._config.hparams), program=self._program))

    def place(self, state: Any) -> Any:
        """A state of numpy arrays, such as a checkpoint's, on the devices."""
        return replicate(state, self._mesh)

    def batches(self, epoch: int) -> np.ndarray:
        """The order of an epoch, counted from 0: int32 [S, B]."""
        return epoch_batches(self._examples, self._config.batch_size, self._config.hparams.seed, epoch)

    def train(self, state: Any, batches: np.ndarray) -> tuple[Any, Metrics]:
        """Dispatch the steps of int32 [K, B] batches; the state is donated. Leaves of the metrics are [K]."""
        indices = shard_batches(batches, self._mesh)
        return train_steps(state, self._hparams, self._train, indices, program=self._program)

    def evaluate(self, state: Any) -> tuple[Metrics, Any]:
        """Score a state; with the logits [N, C] of every example, or None where no process has all of them."""
        found = eval_steps(state, self._hparams, self._eval, self._order, program=self._program)
        metrics, logits = addressable(found)
        if logits is not None:  # without the padding, of the last batch and of batches that did not divide
            logits = np.asarray(logits)[:, : self._eval_batches.shape[1]][self._eval_batches >= 0]
        return metrics, logits


class PopulationDriver:
    """The calls of a population, one member for each config; leaves of its state are [P, ...].

    The configs differ in their hyperparameters alone. The population is filled up to a multiple of the devices by
    copies of the first member, whose numbers nobody reads.
    """

    def __init__(self, configs: list[Config], program: Program, train_split: Split, eval_split: Split) -> None:
        self._config, mesh = configs[0], member_mesh(len(configs))
        self._filling, self._shard = -len(configs) % mesh.size, functools.partial(shard_members, mesh=mesh)
        # A CPU's cores are busy with one member each; wide accelerators want many at once.
        at_once = None if mesh.devices.flat[0].platform == "cpu" else -(-len(configs) // mesh.size)
        self._init_static: dict[str, Any] = {"program": program, "mesh": mesh}
        self._static = self._init_static | {"at_once": at_once}
        filled = configs + configs[:1] * self._filling
        self._seeds, self._examples = [each.hparams.seed for each in filled], len(train_split.labels)
        self._hparams = self._shard(_stack([as_arrays(each.hparams) for each in filled]))
        self._train, self._eval = replicate((tuple(train_split), tuple(eval_split)), mesh)
        self._order = replicate(eval_batches(len(eval_split.labels), self._config.eval_batch_size), mesh)

    def init(self) -> Any:
        """The state of all members before the first step."""
        return init_members(self._hparams, **self._init_static)

    def place(self, states: list[Any]) -> Any:
        """The members' states of numpy arrays, such as their checkpoints', as one on the devices."""
        return self._shard(_stack(states + states[:1] * self._filling))

    def batches(self, epoch: int) -> np.ndarray:
        """Each member's own order of an epoch, counted from 0: int32 [P, S, B]."""
        size = self._config.batch_size
        return np.stack([epoch_batches(self._examples, size, seed, epoch) for seed in self._seeds])

    def train(self, state: Any, batches: np.ndarray) -> tuple[Any, Metrics]:
        """Dispatch the steps of int32 [P, K, B] batches; the state is donated. Leaves of the metrics are [P, K]."""
        return train_members(state, self._hparams, self._train, self._shard(batches), **self._static)

    def evaluate(self, state: Any) -> tuple[Metrics, Any]:
        """Score all members, without their logits."""
        return eval_members(state, self._hparams, self._eval, self._order, **self._static), None


Driver = RunDriver | PopulationDriver

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


def _stack(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)

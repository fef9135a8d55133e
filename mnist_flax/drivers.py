"""The calls that the loop makes, for one run or for a population: they hold the data and what is compiled.

driver = RunDriver(config, program, train_split, eval_split, mesh)
state = driver.init()
state, metrics = driver.train(state, driver.batches(epoch)[:67])
metrics, logits = driver.evaluate(state)
"""

import functools
from typing import Any

import numpy as np
from jax.sharding import Mesh

from mnist_flax.compiled import (
    copy_members,
    eval_members,
    eval_steps,
    init_members,
    init_run,
    measure_batch_norm,
    measure_members,
    train_members,
    train_steps,
)
from mnist_flax.config import Config
from mnist_flax.data.batches import Split, epoch_batches, eval_batches
from mnist_flax.metrics import Metrics
from mnist_flax.placement import addressable, member_mesh, replicate, shard_batches, shard_members, stack
from mnist_flax.program import Program
from mnist_flax.state import as_arrays


class RunDriver:
    """The calls of one run, its batches split over all devices. Every state is placed on the devices."""

    def __init__(self, config: Config, program: Program, train_split: Split, eval_split: Split, mesh: Mesh) -> None:
        self._program, self._mesh, self._examples = program, mesh, len(train_split.labels)
        self.use(config)
        self._train, self._eval = map(self.place, (tuple(train_split), tuple(eval_split)))
        self._eval_batches = eval_batches(len(eval_split.labels), config.eval_batch_size)  # [K, B]
        self._order = shard_batches(self._eval_batches, mesh)
        self._evaluation: Any = None  # compiled

    def use(self, config: Config) -> None:
        """Train with the hyperparameters of this config from the next call on."""
        self._config, self._hparams = config, self.place(as_arrays(config.hparams))

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
        state, metrics = train_steps(state, self._hparams, self._train, indices, program=self._program)
        self._compile_evaluation(state)  # while the first steps run
        return state, metrics

    def measure_batch_norm(self, state: Any, batches: np.ndarray) -> Any:
        """The state, with BatchNorm's statistics measured on all the batches of an epoch if `precise_batch_norm`."""
        if not self._config.precise_batch_norm:
            return state
        indices = shard_batches(batches, self._mesh)
        return state.replace(batch_stats=measure_batch_norm(state, self._train, indices, program=self._program))

    def evaluate(self, state: Any) -> tuple[Metrics, Any]:
        """Score a state; with the logits [N, C] of every example, or None where no process has all of them."""
        found = self._compile_evaluation(state)(state, self._hparams, self._eval, self._order)
        metrics, logits = addressable(found)
        if logits is not None:  # without the padding, of the last batch and of batches that did not divide
            logits = np.asarray(logits)[:, : self._eval_batches.shape[1]][self._eval_batches >= 0]
        return metrics, logits

    def _compile_evaluation(self, state: Any) -> Any:
        if not self._evaluation:
            lowered = eval_steps.lower(state, self._hparams, self._eval, self._order, program=self._program)
            self._evaluation = lowered.compile()
        return self._evaluation


class PopulationDriver:
    """The calls of a population, one member for each config; leaves of its state are [P, ...].

    The population is filled up to a multiple of the devices by copies of the first member, whose numbers nobody reads.
    """

    def __init__(self, configs: list[Config], program: Program, train_split: Split, eval_split: Split) -> None:
        self._config, mesh = configs[0], member_mesh(len(configs))
        self._filling, self._shard = -len(configs) % mesh.size, functools.partial(shard_members, mesh=mesh)
        # A CPU's cores are busy with one member each; wide accelerators want many at once.
        at_once = None if mesh.devices.flat[0].platform == "cpu" else -(-len(configs) // mesh.size)
        self._init_static: dict[str, Any] = {"program": program, "mesh": mesh}
        self._static = self._init_static | {"at_once": at_once}
        self._examples = len(train_split.labels)
        self.use(configs, [0] * len(configs))
        self._train, self._eval = replicate((tuple(train_split), tuple(eval_split)), mesh)
        self._order = replicate(eval_batches(len(eval_split.labels), self._config.eval_batch_size), mesh)

    def use(self, configs: list[Config], first: list[int]) -> None:
        """Train these members from now on, as many as before; epoch 0 is each one's own epoch `first`."""
        filled, epochs = configs + configs[:1] * self._filling, first + first[:1] * self._filling
        self._hparams = self._shard(stack([as_arrays(each.hparams) for each in filled]))
        self._orders = [(each.hparams.seed, epoch) for each, epoch in zip(filled, epochs, strict=True)]

    def init(self) -> Any:
        """The state of all members before the first step."""
        return init_members(self._hparams, **self._init_static)

    def place(self, states: list[Any]) -> Any:
        """The members' states of numpy arrays, such as their checkpoints', as one on the devices."""
        return self._shard(stack(states + states[:1] * self._filling))

    def copy(self, state: Any, source: list[int]) -> Any:
        """The state in which each member has that of its source, in one gather."""
        return copy_members(state, np.asarray(source + source[:1] * self._filling), mesh=self._static["mesh"])

    def batches(self, epoch: int) -> np.ndarray:
        """Each member's own order of an epoch, counted from 0: int32 [P, S, B]."""
        examples, size = self._examples, self._config.batch_size
        return np.stack([epoch_batches(examples, size, seed, first + epoch) for seed, first in self._orders])

    def train(self, state: Any, batches: np.ndarray) -> tuple[Any, Metrics]:
        """Dispatch the steps of int32 [P, K, B] batches; the state is donated. Leaves of the metrics are [P, K]."""
        return train_members(state, self._hparams, self._train, self._shard(batches), **self._static)

    def compile(self, batches: np.ndarray) -> None:
        """Compile a call of `train` without running it, so that the cache of compiled programs has it."""
        train_members.lower(self.init(), self._hparams, self._train, self._shard(batches), **self._static).compile()

    def measure_batch_norm(self, state: Any, batches: np.ndarray) -> Any:
        """The state, with BatchNorm's statistics measured on all the batches of an epoch if `precise_batch_norm`."""
        if not self._config.precise_batch_norm:
            return state
        indices = self._shard(batches)
        return state.replace(batch_stats=measure_members(state, self._train, indices, **self._init_static))

    def evaluate(self, state: Any) -> tuple[Metrics, Any]:
        """Score all members, without their logits."""
        return eval_members(state, self._hparams, self._eval, self._order, **self._static), None


Driver = RunDriver | PopulationDriver

"""Measure what a population costs: a few steps and evaluations of the real program, which are discarded.

cost = measure(config, 16, dataset, data_dir)
cost.epoch_seconds(steps=469, examples=10_000)
"""

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import jax

from mnist_flax.config import Config
from mnist_flax.data.batches import Split
from mnist_flax.data.datasets import Dataset, dataset_info
from mnist_flax.drivers import PopulationDriver
from mnist_flax.loop import Event, make_plan
from mnist_flax.process import files
from mnist_flax.program import make_program
from mnist_flax.sweep import members
from mnist_flax.sweep.members import Member
from mnist_flax.workdir import run_info
from mnist_flax.workdir.resume import new_history

_STEPS, _LAPS = 10, 3  # an epoch's length here; epochs, of which the first compiles
_OVERHEAD = 0.4  # seconds to claim and open a population's members, and to record them


@dataclass(frozen=True)
class Population:
    """Members that a worker trains together."""

    config: Config  # without hyperparameters
    size: int
    start: int  # finished updates


@dataclass(frozen=True)
class Cost:
    """What a population costs, in seconds and bytes."""

    compile: float  # before its first step, with its data on the way to the devices
    step: float
    example: float  # of an evaluation
    epoch: float  # at an epoch's end, besides
    save: float  # of one member
    checkpoint: int  # bytes of one

    def epoch_seconds(self, steps: int, examples: int) -> float:
        """The seconds of an epoch of so many steps, and an evaluation of so many examples."""
        return steps * self.step + examples * self.example + self.epoch


def measure(config: Config, size: int, dataset: Dataset, data_dir: Path) -> Cost:
    """Train a population of `size` members for a few short epochs in a temporary directory.

    With a compilation cache, the cache has the sweep's programs afterwards, and `compile` is the time to load them.
    """
    info = dataset_info(dataset, config.train_split, config.eval_split, data_dir)
    configs = [replace(config, hparams=replace(config.hparams, seed=seed)) for seed in range(size)]
    program, examples = make_program(config, info), info["eval_examples"]
    splits = dataset.read(config.train_split), dataset.read(config.eval_split)
    is_cached = bool(getattr(jax.config, "jax_compilation_cache_dir", None))
    if is_cached:
        driver = PopulationDriver(configs, program, *splits)
        for steps in {last - first for first, last in make_plan(config, program.steps_per_epoch).calls}:
            driver.compile(driver.batches(0)[:, :steps])
    # As if it ended after one epoch: then `members.train` saves nothing on the way.
    static = replace(program.static, epochs=1, warmup_epochs=0.0)
    program = replace(program, static=static, steps_per_epoch=min(_STEPS, program.steps_per_epoch))
    with files.temporary_directory() as path:
        running = list[Member]()
        for each in configs:
            run = run_info.new(replace(each, epochs=max(_LAPS, config.epochs)), info)
            running.append(Member(path / f"{len(running)}", run, program, new_history(run), 0, None))
        running[0].path.mkdir()
        (first, *_), *laps = _train(running, splits, _LAPS)
        began = time.perf_counter()
        members.save(running[:1], running, laps[-1][-1])
        saving = time.perf_counter() - began
        if is_cached:
            jax.clear_caches()
            [(first, *_)] = _train(running, splits, 1)
        whole, training, evaluating, _ = min(laps, key=lambda lap: lap[0])
        saved = [file.stat().st_size for file in running[0].path.rglob("*") if file.is_file()]
    return Cost(
        compile=max(first - whole, 0.0),
        step=training / program.steps_per_epoch,
        example=evaluating / examples,
        epoch=max(whole - training - evaluating, 0.0),
        save=saving,
        checkpoint=sum(saved),
    )


def _train(running: list[Member], splits: tuple[Split, Split], epochs: int) -> list[tuple[float, float, float, Event]]:
    """The seconds of each epoch: the whole, its steps, its evaluation; with the event at its end."""
    laps, training, began = list[tuple[float, float, float, Event]](), 0.0, time.perf_counter()
    for event in members.train(running, *splits, needs_state=lambda: False):
        training += event.seconds
        if event.evaluation is not None:
            laps.append((time.perf_counter() - began, training, event.evaluation_seconds, event))
            training, began = 0.0, time.perf_counter()
        if len(laps) == epochs:
            break
    return laps


class Costs:
    """The measured cost of each program; the number of epochs makes no other one."""

    def __init__(self, dataset: Dataset, data_dir: Path) -> None:
        self._dataset, self._data_dir = dataset, data_dir
        self._measured: dict[tuple[Config, int], Cost] = {}

    def of(self, population: Population) -> Cost:
        """The cost of a population's program; measured once."""
        config = population.config
        key = replace(config, epochs=1, warmup_epochs=0.0), population.size
        if key not in self._measured:
            self._measured[key] = measure(config, population.size, self._dataset, self._data_dir)
        return self._measured[key]

    def makespan(self, claims: list[list[Population]], workers: int, keeps: int) -> float:
        """The seconds until the last worker is done, each taking the next claim when it is free."""
        busy, compiled = [0.0] * workers, [set[tuple[Config, int]]() for _ in range(workers)]
        for claim in claims:
            worker = min(range(workers), key=busy.__getitem__)
            for population in claim:
                key = population.config, population.size
                cost = self.of(population)
                busy[worker] += 0.0 if key in compiled[worker] else cost.compile
                busy[worker] += self._training(population) + cost.save * min(population.size, keeps) + _OVERHEAD
                compiled[worker].add(key)
        cpu = jax.devices()[0].platform == "cpu"
        there = len(os.sched_getaffinity(0)) if cpu and hasattr(os, "sched_getaffinity") else jax.device_count()
        return max(busy) * max(1.0, workers * jax.device_count() / there)  # workers share what there is

    def _training(self, population: Population) -> float:
        """The seconds of the epochs that a population has left."""
        config = population.config
        train, test = (len(self._dataset.read(split).labels) for split in (config.train_split, config.eval_split))
        steps = -(-train // config.batch_size)
        epoch = self.of(population).epoch_seconds(steps, test)
        return epoch * (config.epochs - population.start / steps)

"""The members of a population: each a run with its own directory, as if `mnist_flax.train` had made it alone.

members = [open_member(path, run_info, warn) for ...]  # at their latest checkpoints, or before their first steps
for event in train(members, train_split, eval_split, needs_state):
    ...  # every call ends in an event, as in `loop`; its metrics' leaves are [P, K]
"""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mnist_flax import loop, placement
from mnist_flax.config import Config
from mnist_flax.data.batches import Split
from mnist_flax.data.datasets import Dataset
from mnist_flax.drivers import PopulationDriver
from mnist_flax.errors import RunError
from mnist_flax.process.files import write_lines
from mnist_flax.program import Program, make_program
from mnist_flax.state import as_arrays, init_state
from mnist_flax.workdir import checkpoint, claim
from mnist_flax.workdir.resume import Saved, new_history, resume, update_history
from mnist_flax.workdir.run_info import RunInfo

SAVE_SECONDS = 60.0  # what a killed worker can lose, besides the running epoch


@dataclass(eq=False)
class Member:
    """One run of a population."""

    path: Path
    run: RunInfo
    program: Program  # of all members of its population
    history: dict[str, Any]  # as in the run's checkpoints
    start: int  # finished updates
    state: Any  # numpy arrays; None before the first step
    diverged_at: int | None = None  # the first step with numbers that are not finite; later ones are never saved


def open_member(path: Path, run: RunInfo, warn: Callable[[str], None]) -> Member:
    """A member at its latest checkpoint, or before its first step. The caller must have claimed its directory."""
    try:
        saved = resume(path, run, warn=warn, set_aside=True)
    except RunError as error:  # a member costs little, so a sweep trains it again
        warn(f"{error}; this member starts again from scratch")
        saved = Saved(make_program(run.config, run.data), 0, None, new_history(run))
    if saved.step:  # a kill, or a full disk, may have come between the checkpoint and its metrics
        write_lines(claim.metrics_file(path), saved.history["history"])
    return Member(path, run, saved.program, saved.history, saved.step, saved.state)


def largest(config: Config, dataset: Dataset) -> int:
    """How many members fit into half of the memory."""
    size, data_size = memory_of(config, dataset)
    return max(1, (placement.memory() // 2 - data_size) // size)


def memory_of(config: Config, dataset: Dataset) -> tuple[int, int]:
    """The bytes that a member takes, and those of the data, which every device holds.

    A member takes about three times its state (weights and Adam's two moments): before an update, after it, and on the
    way to a checkpoint; and the activations of a batch.
    """
    info = {"image_shape": dataset.image_shape, "class_names": dataset.class_names, "train_examples": 1}
    init = functools.partial(init_state, program=make_program(config, info))
    state = jax.eval_shape(init, as_arrays(config.hparams))
    size = 3 * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    size += 16 * config.batch_size * (sum(config.widths) + int(np.prod(dataset.image_shape)))
    data_size = sum(dataset.read(split).images.nbytes for split in (config.train_split, config.eval_split))
    return size, jax.device_count() * data_size


def train(
    members: list[Member], train_split: Split, eval_split: Split, needs_state: Callable[[], bool]
) -> Iterator[loop.Event]:
    """Train members of one program and one start to the end; the events, and `needs_state`, are those of `loop.run`.

    Their `history` and `diverged_at` are kept up to date. They are saved at the end of an epoch if a minute has passed
    since the last save; after the last event, or when stopping earlier, the caller saves.
    """
    start, program = members[0].start, members[0].program
    configs = [member.run.config for member in members]
    plan = loop.make_plan(configs[0], program.steps_per_epoch)
    driver = PopulationDriver(configs, program, train_split, eval_split)
    state = driver.place([member.state for member in members]) if start else driver.init()
    saved = time.monotonic()
    for event in loop.run(driver, state, start=start, plan=plan, needs_state=needs_state):
        update(members, event, [0] * len(members))
        if event.evaluation and event.step < program.total_steps and time.monotonic() - saved > SAVE_SECONDS:
            save(members, members, event)
            saved = time.monotonic()
        yield event


def save(chosen: list[Member], members: list[Member], event: loop.Event) -> None:
    """Save the `chosen` of a population's members as ordinary runs, except those that diverged."""
    state = jax.device_get(event.state)
    for index, member in enumerate(members):
        if member in chosen and member.diverged_at is None:
            alone = jax.tree.map(lambda leaf, index=index: np.asarray(leaf[index]), state)
            save_member(member, event.step, alone, member.run.config.keep)


def save_member(member: Member, step: int, state: Any, keep: int) -> None:
    """Save a member at a step as an ordinary run; `state` is numpy arrays."""
    checkpoint.save(claim.checkpoints_dir(member.path), step, state, member.history, keep=keep)
    claim.mark_saved(member.path)
    write_lines(claim.metrics_file(member.path), member.history["history"])


def update(members: Sequence[Member | None], event: loop.Event, done: list[int]) -> None:
    """Add an event to each member's history, each with its share of the time, until the member diverges.

    `done`: the updates that each had finished before those that the event counts from 0.
    """
    number = sum(member is not None for member in members)
    seconds, more = event.seconds / number, event.evaluation_seconds / number
    arrays = jax.device_get((event.metrics, event.evaluation, event.state))
    for index, member in enumerate(members):
        if member is None or member.diverged_at is not None:
            continue
        metrics, evaluation, state = jax.tree.map(lambda leaf, i=index: leaf[i], arrays)
        step, epoch = event.step + done[index], event.epoch + done[index] // member.program.steps_per_epoch
        alone = loop.Event(step, epoch, state, metrics, seconds, evaluation, None, more)
        if bad := loop.not_finite(alone):
            member.diverged_at = bad.step
            member.history["running"] = None  # else the epoch after a copy would begin with this one's steps
        else:
            update_history(member.history, alone, member.run.config_at(step - 1), member.program)

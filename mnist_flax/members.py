"""The members of a population: each a run with a directory of its own, as if `mnist_flax.train` had made it alone.

members = [open_member(path, recorded, warn) for ...]  # at their latest checkpoints, or before their first steps
for event in train(members, train_split, eval_split):
    ...  # every call ends in an event, as in `fit`; its metrics' leaves are [P, K]
"""

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mnist_flax import checkpoint, data, fit, parallel, population, record, workdir, writer
from mnist_flax.config import Config, RunError
from mnist_flax.log import account, new_info
from mnist_flax.model import MLP
from mnist_flax.state import MakeTx, as_arrays, init_state, make_model, make_optimizer

_SAVE_SECONDS = 60.0  # what a killed worker can lose, beside the running epoch


@dataclass(eq=False)
class Member:
    """One run of a population."""

    path: Path
    recorded: record.Run
    info: dict[str, Any]
    """As in the run's checkpoints: its history first of all."""
    start: int
    """Finished updates."""
    state: Any
    """numpy arrays; None before the first step."""
    total_steps: int
    """Updates of the whole run."""
    diverged_at: int | None = None
    """The first step whose numbers were not finite; from there on nothing of it is recorded or saved."""


def open_member(path: Path, recorded: record.Run, warn: Callable[[str], None]) -> Member:
    """A member at its latest checkpoint, or before its first step. Its directory must be claimed."""
    directory = workdir.checkpoints(path)
    checkpoint.clean(directory)
    model, make_tx, image_shape = _program(recorded)
    new = Member(path, recorded, new_info(recorded), 0, None, make_tx.total_steps)
    if not checkpoint.steps(directory):
        return new
    identity = record.identity_of(recorded)
    init = functools.partial(init_state, model=model, make_tx=make_tx, image_shape=image_shape)
    like = jax.eval_shape(init, as_arrays(recorded.config.hparams))
    try:
        start, state, info = checkpoint.restore(
            directory, "latest", identity=identity, like=like, warn=warn, set_aside=True
        )
    except RunError as error:  # a sweep can make it again
        warn(f"{error}; this member starts afresh")
        return new
    return Member(path, recorded, info, start, state, make_tx.total_steps)


def largest(config: Config, dataset: data.Dataset) -> int:
    """How many members fit into half of the memory.

    A member takes its state (weights and Adam's two moments) about three times: as it is, as it is updated, and on the
    way to a checkpoint; and the activations of a batch. Each device holds the data.
    """
    model, make_tx = make_model(config, len(dataset.class_names)), make_optimizer(config, 1)
    init = functools.partial(init_state, model=model, make_tx=make_tx, image_shape=dataset.image_shape)
    state = jax.eval_shape(init, as_arrays(config.hparams))
    size = 3 * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    size += 16 * config.batch_size * (sum(config.widths) + int(np.prod(dataset.image_shape)))
    data_size = sum(dataset.read(split).images.nbytes for split in (config.train_split, config.eval_split))
    return max(1, (parallel.memory() // 2 - jax.device_count() * data_size) // size)


def train(
    members: list[Member], train_split: data.Split, eval_split: data.Split, wanted: Callable[[], bool]
) -> Iterator[fit.Event]:
    """Train members of one static config and one start to the end; the events, and `wanted`, are those of `fit`.

    Their `info` and `diverged_at` are kept up to date. They are saved at the end of an epoch if a minute has passed
    since the last save; after the last event, or when stopping earlier, the caller saves.
    """
    recorded, start = members[0].recorded, members[0].start
    config = recorded.config
    plan = fit.make_plan(config, len(train_split.labels))
    model, make_tx, image_shape = _program(recorded)
    mesh = parallel.member_mesh(len(members))
    # A CPU's cores are busy with one member each; wide accelerators want many at once.
    at_once = None if mesh.devices.flat[0].platform == "cpu" else -(-len(members) // mesh.size)
    filled = members + members[:1] * (-len(members) % mesh.size)  # to a multiple of the devices

    own = functools.partial(parallel.shard_members, mesh=mesh)
    hparams = own(_stack([as_arrays(member.recorded.config.hparams) for member in filled]))
    if start:
        state = own(_stack([member.state for member in filled]))
    else:
        state = population.init_members(hparams, model=model, make_tx=make_tx, image_shape=image_shape, mesh=mesh)
    shared = parallel.replicate((tuple(train_split), tuple(eval_split)), mesh)
    eval_batches = parallel.replicate(data.eval_batches(len(eval_split.labels), config.eval_batch_size), mesh)
    seeds = [member.recorded.config.hparams.seed for member in filled]
    events = fit.fit(
        state,
        start=start,
        plan=plan,
        order=lambda epoch: np.stack(
            [data.epoch_batches(len(train_split.labels), config.batch_size, seed, epoch) for seed in seeds]
        ),
        train=lambda state, batches: population.train_members(
            state, hparams, shared[0], own(batches), model=model, make_tx=make_tx, mesh=mesh, at_once=at_once
        ),
        evaluate=lambda state: (
            population.eval_members(state, hparams, shared[1], eval_batches, model=model, mesh=mesh, at_once=at_once),
            None,
        ),
        wanted=wanted,
    )
    saved = time.monotonic()
    for event in events:
        _account(members, event, make_tx)
        if event.evaluation and event.step < plan.total_steps and time.monotonic() - saved > _SAVE_SECONDS:
            save(members, members, event)
            saved = time.monotonic()
        yield event


def save(chosen: list[Member], members: list[Member], event: fit.Event) -> None:
    """Save the `chosen` of a population's members as ordinary runs, but for those that diverged."""
    state = jax.device_get(event.state)
    for index, member in enumerate(members):
        if member in chosen and member.diverged_at is None:
            own = jax.tree.map(lambda leaf, index=index: np.asarray(leaf[index]), state)
            checkpoint.save(
                workdir.checkpoints(member.path), event.step, own, member.info, keep=member.recorded.config.keep
            )
            workdir.mark_saved(member.path)
            writer.rewrite(workdir.metrics_file(member.path), member.info["history"])


def _account(members: list[Member], event: fit.Event, make_tx: MakeTx) -> None:
    """Add an event to each member's `info`, each taking its share of the time."""
    finite = np.all([np.isfinite(leaf) for leaf in event.metrics], axis=0)  # [P, K]
    scored = np.all([np.isfinite(leaf) for leaf in event.evaluation], axis=(0, 2)) if event.evaluation else None  # [P]
    for index, member in enumerate(members):
        if member.diverged_at is not None:
            continue
        if not finite[index].all():
            member.diverged_at = event.step - finite.shape[1] + int(finite[index].argmin()) + 1
        elif scored is not None and not scored[index]:
            member.diverged_at = event.step
        else:
            of_member = functools.partial(jax.tree.map, lambda leaf, index=index: leaf[index])
            own = event._replace(
                metrics=of_member(event.metrics),
                evaluation=of_member(event.evaluation),
                seconds=event.seconds / len(members),
                evaluation_seconds=event.evaluation_seconds / len(members),
            )
            account(member.info, own, member.recorded.config, make_tx.unit_schedule())


def _program(recorded: record.Run) -> tuple[MLP, MakeTx, tuple[int, ...]]:
    config, facts = recorded.config, recorded.data
    steps_per_epoch = -(-facts["train_examples"] // config.batch_size)
    model = make_model(config, len(facts["class_names"]))
    return model, make_optimizer(config, steps_per_epoch), tuple(facts["image_shape"])


def _stack(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)

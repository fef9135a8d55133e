"""The lanes of one compiled population: each trains one member at that member's own step, and may change members.

    lanes = Lanes(16, member, train_split, eval_split)
    lanes.seat([member, another])
    for event in lanes.train_epoch():
        ...  # of `loop`, counted from the epoch's begin; leaves of its metrics are [P, K]

Their number is fixed, and nothing is compiled again when a lane changes its member. A lane without a member repeats
what another one does, and nobody reads that.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from mnist_flax import loop
from mnist_flax.compiled import init_run
from mnist_flax.data.batches import Split
from mnist_flax.drivers import PopulationDriver
from mnist_flax.state import as_arrays
from mnist_flax.sweep.members import Member, update


class Lanes:
    """Members that train an epoch at a time; `start` and `state` of each say how far it is after that."""

    def __init__(self, size: int, like: Member, train_split: Split, eval_split: Split) -> None:
        """For members with the settings of `like`, but for the hyperparameters."""
        self.members: list[Member | None] = [None] * size
        self.config, self._program = like.run.config, like.program
        self._driver = PopulationDriver([self.config] * size, self._program, train_split, eval_split)
        self._plan = dataclasses.replace(loop.make_plan(self.config, self._program.steps_per_epoch), epochs=1)
        self._state: Any = None  # on the devices; None where the members' own states count

    def running(self) -> list[Member]:
        """The members that have a lane."""
        return [member for member in self.members if member]

    def seat(self, members: Sequence[Member]) -> None:
        """Give lanes to these members alone, of whom each goes on from its state, or from its first step.

        Who has a lane keeps it.
        """
        kept = [member if member in members else None for member in self.members]
        new = [member for member in members if member not in kept]
        for lane in [lane for lane, member in enumerate(kept) if member is None][: len(new)]:
            kept[lane], self._state = new.pop(0), None
        assert not new
        self.members = kept

    def train_epoch(self) -> Iterator[loop.Event]:
        """Train every member for an epoch; at least one has a lane. Their histories are kept up to date."""
        steps, first = self._program.steps_per_epoch, self.running()[0]
        lanes = [member or first for member in self.members]
        done = [member.start for member in lanes]
        self._driver.use([member.run.config_at(member.start) for member in lanes], [start // steps for start in done])
        if self._state is None:
            for member in self.running():
                member.state = self._first_state(member) if member.state is None else member.state
            self._state = self._driver.place([member.state for member in lanes])
        for event in loop.run(self._driver, self._state, start=0, plan=self._plan, needs_state=lambda: False):
            update(self.members, event, done)
            self._state = event.state
            yield event
        host = jax.tree.map(np.array, self._state)  # a copy: the next step donates it
        for lane, member in enumerate(self.members):
            if member:
                member.start += steps
                member.state = jax.tree.map(lambda leaf, lane=lane: np.asarray(leaf[lane]), host)

    def copy(self, source: list[int]) -> None:
        """Let each lane go on from the state of its source: one gather over the lanes. All have the same step."""
        if self._state is not None:
            self._state = self._driver.copy(self._state, source)
        states = [member.state for member in self.running()]
        for member, index in zip(self.running(), source, strict=True):
            member.state = states[index]

    def _first_state(self, member: Member) -> Any:
        hparams = as_arrays(member.run.config_at(0).hparams)
        return jax.tree.map(np.array, init_run(hparams, program=self._program))

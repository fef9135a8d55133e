"""Who copied whom in a population, and with which hyperparameters each member's weights were trained.

population = Population(members, method, seed)
population.begin()
source = population.evolve(generation=1)  # the index of the member from which each goes on
population.lineages[3]  # from the first step of the first ancestor on: the lines of lineage.jsonl
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from mnist_flax.sweep.adapt import PopulationBased
from mnist_flax.sweep.members import Member


@dataclass
class Population:
    """The members in their order, and how each came to be what it is."""

    members: list[Member]
    method: PopulationBased
    seed: int  # of the decisions
    lineages: list[list[dict[str, Any]]] = field(default_factory=list)

    def begin(self) -> None:
        """The lineages before the first step."""
        for member in self.members:  # first: a saved one has hyperparameters of those that it copied later
            member.run = dataclasses.replace(member.run, hparams_by_step={})
        self.lineages = [[self._line(0, member, None, None)] for member in self.members]

    def evolve(self, generation: int) -> list[int]:
        """Decide after a generation, counted from 1: the index of the member from which each goes on."""
        epoch = generation * self.method.every
        scores = [_score(member, epoch) for member in self.members]
        choices = self.method.choices(self.seed, generation, scores)
        before, lineages = [member.run for member in self.members], self.lineages
        step = epoch * self.members[0].program.steps_per_epoch
        self.lineages = []
        for index, (member, choice) in enumerate(zip(self.members, choices, strict=True)):
            line = None
            if choice.source != index:
                theirs = before[choice.source]
                hparams = choice.hparams(theirs.config_at(step).hparams, member.run.config.hparams.seed)
                by_step = (theirs.hparams_by_step or {0: theirs.config.hparams}) | {step: hparams}
                member.run = dataclasses.replace(member.run, hparams_by_step=by_step)
                line = self._line(generation, member, self.members[choice.source], scores[choice.source])
            self.lineages.append(lineages[choice.source] + ([line] if line else []))
        return [choice.source for choice in choices]

    def _line(self, generation: int, member: Member, source: Member | None, score: float | None) -> dict[str, Any]:
        """From where on a member trains with which hyperparameters; the score is that of the copied member."""
        step = generation * self.method.every * member.program.steps_per_epoch
        hparams = dataclasses.asdict(member.run.config_at(step).hparams)
        line = {"step": step, "generation": generation, "member": member.path.name}
        return line | {"copied_from": source and source.path.name, "score": score, "hparams": hparams}


def _score(member: Member, epoch: int) -> float | None:
    lines = [line for line in member.history["history"] if (line["split"], line["epoch"]) == ("eval", epoch)]
    return lines[0]["accuracy"] if lines else None

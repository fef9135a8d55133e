"""How a population adapts while it trains: the two methods as data, their checks, their pure decisions.

    ADAPT = Halving(rungs=(1, 3, 9), keep=1 / 3)
    ADAPT = PopulationBased(every=1, quantile=0.25, perturb={"learning_rate": (0.8, 1.25)})

An experiment file defines one of them, or none. Nothing here needs JAX.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from mnist_flax.config import Config, Hyperparams
from mnist_flax.errors import InputError, wrong
from mnist_flax.settings import Between, Setting, settings_of

_MOST = 10**6


@dataclass(frozen=True)
class Halving:
    """Asynchronous successive halving (Li et al., MLSys 2020), which stops members and never takes one up again.

    A member that reaches a rung goes on if it is among the best `keep` of all that have reached that rung so far, as in
    Optuna's `SuccessiveHalvingPruner`.
    """

    rungs: tuple[int, ...] = (1, 3, 9)
    """Epochs after which members may stop; at BASE.epochs they are done."""
    keep: float = 1 / 3
    """Share of the members at a rung that go on, and at least one."""
    across: Literal["seed"] | None = None
    """`seed`: the seeds of one configuration go on or stop together, by their mean."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "rungs", _tuple(self.rungs))
        rising = isinstance(self.rungs, tuple) and [*self.rungs] == sorted({*filter(_is_epoch, self.rungs)})
        if not (rising and self.rungs):
            raise wrong("rungs", self.rungs, "is out of range", "give rising whole numbers from 1, such as (1, 3, 9)")
        if not (_is_number(self.keep) and 0 < self.keep < 1):
            raise wrong("keep", self.keep, "is out of range", "give a number between 0 and 1, such as 1/3")
        if self.across not in (None, "seed"):
            raise wrong("across", self.across, "is out of range", 'give "seed" or None')

    def check(self, base: Config, *, search: bool) -> None:
        """Raise `InputError` unless it fits the rest of an experiment."""
        if not (self.rungs[0] < base.epochs and self.rungs[-1] <= base.epochs):
            remedy = "give rungs up to that number, and one before it"
            raise wrong("rungs", self.rungs, f"does not fit BASE.epochs={base.epochs}", remedy)
        if self.across and search:
            raise wrong("across", self.across, "needs members that sweep() lists", "give None to a search")

    def check_member(self, overrides: Mapping[str, Any]) -> None:
        """Raise `InputError` if a member cannot be compared with the others."""
        if "epochs" in overrides:
            raise wrong("epochs", overrides["epochs"], "cannot differ between members with ADAPT", "set it in BASE")

    def rung(self, epoch: int, epochs: int) -> int | None:
        """The last rung that a member of `epoch` finished epochs has reached, of those before the end."""
        return max((rung for rung in self.rungs if rung <= epoch and rung < epochs), default=None)

    def next_rung(self, epoch: int, epochs: int) -> int | None:
        """The first rung after `epoch`, of those before the end."""
        return min((rung for rung in self.rungs if epoch < rung < epochs), default=None)

    def expected_epochs(self, epoch: int, epochs: int) -> float:
        """How many of its `epochs` a member of `epoch` finished ones has left, where `keep` go on at each rung."""
        total, share = 0.0, 1.0
        while epoch < epochs:
            last = self.next_rung(epoch, epochs) or epochs
            total, share, epoch = total + share * (last - epoch), share * self.keep, last
        return total


class Choice(NamedTuple):
    """What a member does after a generation: copy the member `source` (itself: go on), and change hyperparameters."""

    source: int
    factors: dict[str, float] = {}
    values: dict[str, float] = {}

    def hparams(self, copied: Hyperparams, seed: int) -> Hyperparams:
        """Its hyperparameters from now on, from those that it copies; within their range. The seed is its own."""
        changed = {name: getattr(copied, name) * factor for name, factor in self.factors.items()} | self.values
        return replace(copied, seed=seed, **{name: _clip(name, value) for name, value in changed.items()})


@dataclass(frozen=True)
class PopulationBased:
    """Population-based training (Jaderberg et al., 2017) with truncation selection.

    After each generation the worst `quantile` copy weights, optimizer state, statistics and hyperparameters of members
    of the best `quantile`, each keeps its seed, and changes the hyperparameters. Who has diverged copies too.
    """

    every: int = 1
    """Epochs of a generation."""
    quantile: float = 0.25
    """Share of the members that copy, and share from which they copy; at least one each."""
    perturb: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """For each hyperparameter factors, of which one is drawn: {"learning_rate": (0.8, 1.25)}."""
    resample: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """For each hyperparameter values, of which one is drawn: {"dropout_rate": (0.0, 0.1, 0.2)}."""

    def __post_init__(self) -> None:
        if not _is_epoch(self.every):
            raise wrong("every", self.every, "is out of range", f"give a whole number from 1 to {_MOST}")
        if not (_is_number(self.quantile) and 0 < self.quantile <= 0.5):
            raise wrong("quantile", self.quantile, "is out of range", "give a number above 0, up to 0.5")
        for name in ("perturb", "resample"):
            object.__setattr__(self, name, _choices(name, getattr(self, name)))
        if not self.perturb and not self.resample:
            remedy = 'name a hyperparameter, such as {"learning_rate": (0.8, 1.25)}'
            raise wrong("perturb", self.perturb, "changes nothing, and resample neither", remedy)
        if both := ", ".join(sorted(self.perturb.keys() & self.resample.keys())):
            raise wrong("resample", self.resample, f"names {both}, as perturb does", "name it in one of them")

    def check(self, base: Config, *, search: bool) -> None:
        """Raise `InputError` unless it fits the rest of an experiment."""
        if self.every >= base.epochs:
            remedy = "give a smaller number, or more epochs"
            raise wrong("every", self.every, f"leaves BASE.epochs={base.epochs} without a second generation", remedy)

    def check_member(self, overrides: Mapping[str, Any]) -> None:
        """Raise `InputError` if a member's weights cannot be copied to another."""
        for name, value in overrides.items():
            if name not in settings_of(Hyperparams):
                problem = "cannot differ between members of PopulationBased, which copy weights"
                raise wrong(name, value, problem, "set it in BASE")

    def choices(self, seed: int, generation: int, scores: Sequence[float | None]) -> list[Choice]:
        """What each member does after a generation, counted from 1: a pure function of these three.

        `scores` are accuracies; None: the member has diverged. Ties go to the member that comes first.
        """
        import numpy as np

        number, rng = len(scores), np.random.default_rng((seed, generation))
        order = sorted(range(number), key=lambda i: (scores[i] is None, -(scores[i] or 0.0), i))  # the best first
        count = max(1, math.floor(number * self.quantile + 1e-9)) if number > 1 else 0
        best = [i for i in order[:count] if scores[i] is not None]
        found = []
        for i in range(number):
            if not best or (i not in order[number - count :] and scores[i] is not None):
                found.append(Choice(i))
                continue
            drawn = [
                {name: options[int(rng.integers(len(options)))] for name, options in each.items()}
                for each in (self.perturb, self.resample)
            ]
            found.append(Choice(best[int(rng.integers(len(best)))], *drawn))
        return found


Adapt = Halving | PopulationBased


def expected_epochs(adapt: Adapt | None, epoch: int, epochs: int) -> float:
    """How many of its `epochs` a member of `epoch` finished ones has left, on average."""
    return adapt.expected_epochs(epoch, epochs) if isinstance(adapt, Halving) else epochs - epoch


def to_json(adapt: Adapt) -> dict[str, Any]:
    """A method as JSON values."""
    values = {name: getattr(adapt, name) for name in adapt.__dataclass_fields__}
    plain = {name: [*value] if isinstance(value, tuple) else value for name, value in values.items()}
    plain = {n: {k: [*v] for k, v in value.items()} if isinstance(value, dict) else value for n, value in plain.items()}
    return {"method": type(adapt).__name__} | plain


def _choices(field_name: str, given: Any) -> dict[str, tuple[float, ...]]:
    """The factors or values of each hyperparameter; raises `InputError` for what is not."""
    example = 'give a dict such as {"learning_rate": (0.8, 1.25)}'
    if not isinstance(given, Mapping):
        raise wrong(field_name, given, "is not a dict", example)
    table = settings_of(Hyperparams)
    for name, options in given.items():
        if name not in table or table[name].kind is not float:
            names = ", ".join(each for each, setting in table.items() if setting.kind is float)
            raise wrong(field_name, given, f"names {name!r}", f"give one of {names}")
        if not (isinstance(options, Sequence) and options and all(map(_is_number, options))):
            raise wrong(field_name, given, f"has no numbers for {name}", example)
        if field_name == "perturb" and min(options) <= 0:
            raise wrong(field_name, given, f"has a factor for {name} that is not above 0", example)
        if field_name == "resample":
            for value in options:
                if _clip(name, value) != value:
                    raise InputError(f"resample has {name}={value!r}, which is out of range; {example}")
    return {name: tuple(map(float, options)) for name, options in given.items()}


def _clip(name: str, value: float) -> float:
    """The nearest value within a hyperparameter's range."""
    setting: Setting = settings_of(Hyperparams)[name]
    assert isinstance(setting.limit, Between) and not isinstance(setting.limit.high, str)
    return min(max(value, setting.limit.low), setting.limit.high)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _is_epoch(value: Any) -> bool:
    return type(value) is int and 1 <= value <= _MOST


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)

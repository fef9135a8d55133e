"""How a setting describes itself: marks next to its type, and the table that everything else is generated from.

    epochs: Annotated[int, Between(1, 10**6), SHARED] = 4
    for setting in settings_of(Config).values():
        print(setting.name, setting.kind, setting.default)

Checks, messages and JSON come from this table; flags come from the same annotations and the docstring below them.
"""

import dataclasses
import enum
import functools
import math
import re
import typing
from dataclasses import dataclass
from typing import Any, Literal

from mnist_flax.errors import wrong

_MOST = 64  # numbers in one setting


class Mark(enum.Enum):
    """What else is true of a setting."""

    LATER = "older files lack it: its default means `as before`, and is not written while it holds"
    SHARED = "the members of one sweep may not differ in it"


LATER, SHARED = Mark.LATER, Mark.SHARED


@dataclass(frozen=True)
class Between:
    """A number, or up to 64 whole numbers, from `low` to `high`; `high` may be the name of another setting."""

    low: float
    high: float | str
    example: str = ""

    def remedy(self, value: Any, kind: type, config: Any) -> str | None:
        """What to give instead of a wrong value; None if the value is right."""
        high: float = getattr(config, self.high) if isinstance(self.high, str) else self.high
        if kind is tuple:
            if isinstance(value, tuple) and len(value) > _MOST:
                return f"at most {_MOST} of them"
            ok = isinstance(value, tuple) and all(_is_a(item, int) and self.low <= item <= high for item in value)
            return None if ok else f"numbers from {self.low} to {high}, such as {self.example}"
        if _is_a(value, kind) and self.low <= value <= high:
            return None
        if kind is int:
            return f"a whole number from {self.low} to {high}"
        upper = f"{self.high}={high}" if isinstance(self.high, str) else f"{high:.8g}"
        return f"from {self.low:g} to {upper}" + (f", such as {self.example}" if self.example else "")


@dataclass(frozen=True)
class Layers:
    """Different layers, counted from 1: the hidden layers, and the output layer after them if `output`."""

    output: bool

    def remedy(self, value: Any, kind: type, config: Any) -> str | None:
        """What to give instead of a wrong value; None if the value is right."""
        last = len(config.widths) + self.output
        ok = isinstance(value, tuple) and all(_is_a(layer, int) and 1 <= layer <= last for layer in value)
        if ok and len(set(value)) == len(value):
            return None
        return f"different layers from 1 to {last} (for widths={config.widths}), or none"


@dataclass(frozen=True)
class Matches:
    """A text that a regular expression matches as a whole; the example says what to give."""

    pattern: str
    example: str

    def remedy(self, value: Any, kind: type, config: Any) -> str | None:
        """What to give instead of a wrong value; None if the value is right."""
        ok = isinstance(value, str) and re.fullmatch(self.pattern, value, re.ASCII)
        return None if ok else self.example


@dataclass(frozen=True)
class Setting:
    """One row of the table."""

    name: str
    kind: type
    """int, float, bool, str or tuple (of int)."""
    default: Any
    choices: tuple[str, ...]
    """Of a Literal; empty for any other type."""
    limit: Between | Layers | Matches | None
    marks: frozenset[Mark]

    def check(self, value: Any, config: Any) -> None:
        """Raise `InputError`, with the field, the value and the remedy, unless `value` is right for `config`."""
        if self.limit:
            remedy = self.limit.remedy(value, self.kind, config)
        elif self.choices:
            remedy = None if value in self.choices else f"one of {', '.join(self.choices)}"
        else:
            remedy = None if isinstance(value, self.kind) else f"a {self.kind.__name__}"
        if remedy:
            raise wrong(self.name, value, "is out of range", f"give {remedy}")

    def from_json(self, value: Any) -> Any:
        """A JSON value as this setting's type; raises `TypeError` where it has another."""
        value = tuple(value) if isinstance(value, list) else value
        allowed = (int, float) if self.kind is float else self.kind
        if not isinstance(value, allowed) or isinstance(value, bool) != (self.kind is bool):
            raise TypeError
        return float(value) if self.kind is float else value


@functools.cache
def settings_of(cls: type) -> dict[str, Setting]:
    """The settings of a dataclass by name, in its order; fields that are dataclasses themselves are not among them."""
    hints = typing.get_type_hints(cls, include_extras=True)
    table = {}
    for field in dataclasses.fields(cls):
        annotated = typing.get_origin(hints[field.name]) is typing.Annotated
        hint, *marks = typing.get_args(hints[field.name]) if annotated else [hints[field.name]]
        if not dataclasses.is_dataclass(hint):
            choices = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
            kind = str if choices else typing.get_origin(hint) or hint
            limit = next((mark for mark in marks if not isinstance(mark, Mark)), None)
            given = frozenset(mark for mark in marks if isinstance(mark, Mark))
            table[field.name] = Setting(field.name, kind, field.default, choices, limit, given)
    return table


def _is_a(value: object, kind: type) -> bool:
    """Whether it is a whole number (int), or any finite number (float); True and False are neither."""
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or (kind is float and isinstance(value, float) and math.isfinite(value))

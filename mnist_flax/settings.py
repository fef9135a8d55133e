"""How a setting describes itself: marks next to its type, and the table that everything else is generated from.

    widths: Annotated[tuple[int, ...], Each(1, 65536, most=64, what="layers", example="512 512")] = (512, 512)
    for setting in settings_of(Config).values():
        print(setting.name, setting.kind, setting.default)

Checks, messages and JSON come from this table. Flags come from the same annotations and the docstring below them.
"""

import dataclasses
import functools
import math
import re
import typing
from dataclasses import dataclass
from typing import Any, Literal

from mnist_flax.errors import InputError


@dataclass(frozen=True)
class Between:
    """A number from `low` to `high`, where `high` may be the name of another field."""

    low: float
    high: float | str
    example: str = ""

    def remedy(self, value: Any, kind: type, config: Any) -> str | None:
        """What to give instead of a wrong value; None if the value is right."""
        high: float = getattr(config, self.high) if isinstance(self.high, str) else self.high
        if _is_a(value, kind) and self.low <= value <= high:
            return None
        if kind is int:
            return f"a whole number from {self.low} to {high}"
        upper = f"{self.high}={high}" if isinstance(self.high, str) else f"{high:.8g}"
        return f"from {self.low:g} to {upper}" + (f", such as {self.example}" if self.example else "")


@dataclass(frozen=True)
class Each:
    """At most `most` whole numbers, each from `low` to `high`."""

    low: int
    high: int
    most: int
    what: str
    example: str

    def remedy(self, value: Any, kind: type, config: Any) -> str | None:
        """What to give instead of a wrong value; None if the value is right."""
        if isinstance(value, tuple) and len(value) > self.most:
            return f"at most {self.most} {self.what}"
        ok = isinstance(value, tuple) and all(_is_a(item, int) and self.low <= item <= self.high for item in value)
        return None if ok else f"numbers from {self.low} to {self.high}, such as {self.example}"


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
    """A text that a regular expression matches as a whole."""

    pattern: str
    example: str

    def remedy(self, value: Any, kind: type, config: Any) -> str | None:
        """What to give instead of a wrong value; None if the value is right."""
        ok = isinstance(value, str) and re.fullmatch(self.pattern, value, re.ASCII)
        return None if ok else self.example


@dataclass(frozen=True)
class Mark:
    """A property of a setting, named by one of the two constants below."""

    name: str


LATER = Mark("an older run's file lacks it: its default means `as before`, and is not written while it holds")
SHARED = Mark("the members of one sweep may not differ in it")

Limit = Between | Each | Layers | Matches


@dataclass(frozen=True)
class Setting:
    """One row of the table."""

    name: str
    kind: type
    """int, float, str or tuple (of int)."""
    default: Any
    choices: tuple[str, ...]
    """Of a Literal; empty for any other type."""
    limit: Limit | None
    later: bool
    shared: bool

    def check(self, value: Any, config: Any) -> None:
        """Raise `InputError`, with the field, the value and the remedy, unless `value` is right for `config`."""
        if self.choices:
            remedy = None if value in self.choices else f"one of {', '.join(self.choices)}"
        else:
            remedy = self.limit and self.limit.remedy(value, self.kind, config)
        if remedy:
            raise InputError(f"{self.name}={value!r} is out of range; give {remedy}")

    def from_json(self, value: Any) -> Any:
        """A JSON value as this setting's type; raises `TypeError` where it has another."""
        value = tuple(value) if isinstance(value, list) else value
        allowed = (int, float) if self.kind is float else self.kind
        if not isinstance(value, allowed) or isinstance(value, bool):
            raise TypeError
        return float(value) if self.kind is float else value


@functools.cache
def settings_of(cls: type) -> dict[str, Setting]:
    """The settings of a dataclass by name, in its order; fields that are dataclasses themselves are not among them."""
    hints = typing.get_type_hints(cls, include_extras=True)
    table = {}
    for field in dataclasses.fields(cls):
        hint, *marks = typing.get_args(hints[field.name]) if _is_annotated(hints[field.name]) else [hints[field.name]]
        if dataclasses.is_dataclass(hint):
            continue
        choices = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
        kind = str if choices else typing.get_origin(hint) or hint
        limit = next((mark for mark in marks if not isinstance(mark, Mark)), None)
        table[field.name] = Setting(field.name, kind, field.default, choices, limit, LATER in marks, SHARED in marks)
    return table


def _is_annotated(hint: Any) -> bool:
    return typing.get_origin(hint) is typing.Annotated


def _is_a(value: object, kind: type) -> bool:
    """Whether it is a whole number (int), or any finite number (float); True and False are neither."""
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or (kind is float and isinstance(value, float) and math.isfinite(value))

"""How a setting describes itself: marks next to its type, and the table that everything else is generated from.

    keep: Annotated[int, Between(1, 10**6), SHARED] = 2
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
from typing import Any, Literal, NamedTuple

from mnist_flax.errors import wrong

_MOST = 64  # numbers in one setting


class Mark(enum.Enum):
    """What else is true of a setting."""

    LATER = "older files lack it: its default means `as before`, and is not written while it holds"
    SHARED = "the members of one sweep may not differ in it"


LATER, SHARED = Mark.LATER, Mark.SHARED


class Between(NamedTuple):
    """A number, or up to 64 whole numbers, from `low` to `high`; `high` may be the name of another setting."""

    low: float
    high: float | str
    example: str = ""


class Layers(NamedTuple):
    """Different layers, counted from 1: the hidden layers, and the output layer after them if `output`."""

    output: bool


class Matches(NamedTuple):
    """A text that a regular expression matches as a whole; the example says what to give."""

    pattern: str
    example: str


class Needs(NamedTuple):
    """Another setting, without which this one changes nothing."""

    setting: str


KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", tuple: "a list of numbers"}


class Setting(NamedTuple):
    """One row of the table."""

    name: str
    kind: type  # int, float, bool, str or tuple (of int)
    default: Any
    choices: tuple[str, ...]  # of a Literal; empty for any other type
    limit: Between | Layers | Matches | None
    marks: frozenset[Mark]
    needs: str = ""  # the setting without which it changes nothing

    def check(self, value: Any, config: Any) -> None:
        """Raise `InputError`, with the field, the value and the remedy, unless `value` is right for `config`."""
        if remedy := self._remedy(value, config):
            raise wrong(self.name, value, "is out of range", f"give {remedy}")

    def from_json(self, value: Any) -> Any:
        """A JSON value as this setting's type; raises `TypeError` where it has another."""
        value = tuple(value) if isinstance(value, list) else value
        allowed = (int, float) if self.kind is float else self.kind
        if not isinstance(value, allowed) or isinstance(value, bool) != (self.kind is bool):
            raise TypeError
        return float(value) if self.kind is float else value

    def _remedy(self, value: Any, config: Any) -> str:
        """What to give instead of a wrong value; empty if the value is right."""
        match self.limit:
            case Between(low, high, example):
                top: float = getattr(config, high) if isinstance(high, str) else high
                if self.kind is tuple:
                    numbers = _whole_numbers(value)
                    ok = numbers is not None and len(numbers) <= _MOST and all(low <= item <= top for item in numbers)
                    return "" if ok else f"at most {_MOST} numbers from {low} to {top}, such as {example}"
                if _is_a(value, self.kind) and low <= value <= top:
                    return ""
                if self.kind is int:
                    return f"a whole number from {low} to {top}"
                upper = f"{high}={top}" if isinstance(high, str) else f"{top:.8g}"
                return f"from {low:g} to {upper}" + (f", such as {example}" if example else "")
            case Layers(output):
                last, numbers = len(config.widths) + output, _whole_numbers(value)
                ok = numbers is not None and all(1 <= layer <= last for layer in numbers)
                unique = ok and len(set(numbers or ())) == len(value)
                flag = f"--{self.name.replace('_', '-')}"
                remedy = f"different layers from 1 to {last} (for widths={config.widths}), or {flag} alone for none"
                return "" if unique else remedy
            case Matches(pattern, example):
                return "" if isinstance(value, str) and re.fullmatch(pattern, value, re.ASCII) else example
        if self.choices:
            return "" if value in self.choices else f"one of {', '.join(self.choices)}"
        return "" if isinstance(value, self.kind) else f"a {self.kind.__name__}"


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
            limit = next((mark for mark in marks if isinstance(mark, Between | Layers | Matches)), None)
            given = frozenset(mark for mark in marks if isinstance(mark, Mark))
            needs = next((mark.setting for mark in marks if isinstance(mark, Needs)), "")
            table[field.name] = Setting(field.name, kind, field.default, choices, limit, given, needs)
    return table


def _whole_numbers(value: object) -> tuple[int, ...] | None:
    return value if isinstance(value, tuple) and all(_is_a(item, int) for item in value) else None


def _is_a(value: object, kind: type) -> bool:
    """Whether it is a whole number (int), or any finite number (float); True and False are neither."""
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or (kind is float and isinstance(value, float) and math.isfinite(value))

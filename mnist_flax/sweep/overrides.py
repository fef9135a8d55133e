"""Overrides: some fields of a config by name, as experiments give them.

config = override(Config(), {"l2": 0.0, "batch_norm_layers": (1, 2)})
"""

import difflib
import json
from typing import Any

from mnist_flax.config import Config, Hyperparams, flatten, from_json, to_json
from mnist_flax.errors import InputError
from mnist_flax.settings import settings_of

Overrides = dict[str, Any]


def override(base: Config, overrides: Overrides, *, fixed: frozenset[str] = frozenset()) -> Config:
    """A config with some fields changed, hyperparameters among them.

    Args:
      base: the config.
      overrides: new values by field.
      fixed: fields that may not change.

    Raises:
      InputError: a field is unknown, wrong or fixed; names it, its value and the remedy.
    """
    if not isinstance(overrides, dict):
        raise InputError(f"overrides must be a dict such as {{'l2': 0.001}}, not {overrides!r:.60}")
    fields = flatten(base)
    for name in overrides:
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, 1)
            remedy = f"did you mean {near[0]}?" if near else f"the fields are {', '.join(fields)}"
            raise InputError(f"there is no field {name!r} to override; {remedy}")
        if name in fixed:
            raise InputError(f"{name}={overrides[name]!r} cannot differ between members; set it in BASE")
    tree = to_json(base)
    for name, value in to_plain(overrides).items():
        (tree["hparams"] if name in settings_of(Hyperparams) else tree)[name] = value
    return from_json(tree, "overrides", remedy="give a value of the field's type")


def overrides_key(overrides: Overrides) -> str:
    """The same text for the same overrides, whatever their order."""
    return json.dumps(overrides, sort_keys=True)


def to_plain(overrides: Overrides) -> Overrides:
    """The overrides as JSON gives them back: numpy scalars as numbers, tuples as lists."""
    values = {name: value.item() if hasattr(value, "item") else value for name, value in overrides.items()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

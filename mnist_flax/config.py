"""Every setting of a run, its default and its limits: the only place where they stand.

    config = Config(hparams=Hyperparams(learning_rate=3e-4), epochs=10)

The command line is generated from these classes; a wrong value raises `InputError` with the field, the value and the
remedy. Nothing here needs JAX.
"""

import dataclasses
import math
import re
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

BATCH_NORM_MOMENTUM, BATCH_NORM_EPSILON = 0.99, 1e-3  # Keras's defaults, and no setting
_RESTORE = "restore it or choose another --workdir"
_LATER = ("precision",)  # an older run's files lack them: their default stands for that, and is not written
_TINY, _HUGE, _BELOW_1 = 1e-30, 1e30, 1 - 2**-24  # well inside float32, whose largest number below 1 is the last


class InputError(Exception):
    """What the user gave is wrong (exit code 2). Its message is one line: the field, the value, the remedy."""


class RunError(Exception):
    """The run failed (exit code 1). Its message is one line: what happened, and what was saved."""


@dataclass(frozen=True)
class Hyperparams:
    """What may differ between the members of one population without changing the compiled program.

    Python numbers in a `Config`; float32 [] (seed: uint32 []) inside a step; [P] outside the vmap of a population.
    Not validated here, since it also carries traced arrays: `Config` does it.
    """

    learning_rate: float = 1e-3
    """Adam's step size; the schedule multiplies it."""
    l2: float = 1e-3
    """Weight of the penalty l2 * sum(kernel^2), without 1/2, as in Keras."""
    max_norm: float = 3.0
    """Largest norm of a unit's incoming weights in `max_norm_layers`, held after every update."""
    dropout_rate: float = 0.2
    """Share of each hidden layer's units that a training step sets to zero; 0 turns dropout off."""
    label_smoothing: float = 0.0
    """Share of the target that is spread evenly over all classes, in training only."""
    b1: float = 0.9
    """Adam's decay of the mean of the gradients."""
    b2: float = 0.999
    """Adam's decay of the mean of the squared gradients."""
    seed: int = 0
    """Initial weights, dropout masks and the order of the data follow from it."""


@dataclass(frozen=True)
class Config:
    """One run. The defaults are the Keras tutorial, step for step."""

    hparams: Hyperparams = field(default_factory=Hyperparams)

    widths: tuple[int, ...] = (512, 512)
    """Units of each hidden layer."""
    batch_norm_layers: tuple[int, ...] = (2,)
    """Hidden layers, counted from 1, that carry BatchNorm between the product and the relu."""
    l2_layers: tuple[int, ...] = (2,)
    """Layers, counted from 1, whose kernel carries the L2 penalty; the last is the output layer."""
    max_norm_layers: tuple[int, ...] = ()
    """Layers, counted from 1, whose units' incoming weights are held to `max_norm`."""

    adam_epsilon: float = 1e-7
    """Adam's epsilon, added to the root of the bias-corrected second moment."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """The learning rate after the warm-up: constant, or decayed to 0 at the end of the run."""
    warmup_epochs: float = 0.0
    """Epochs over which the learning rate rises linearly to its full value."""
    batch_size: int = 128
    """Examples a step, over all devices; the last, short batch of an epoch is trained on too."""
    epochs: int = 4
    """Passes over the training split."""

    dataset: str = "mnist"
    """mnist, fashion_mnist, kmnist, or any prepared TFDS dataset with `image` and `label`."""
    train_split: str = "train"
    """TFDS split to train on, such as train[:50000]."""
    eval_split: str = "test"
    """TFDS split to evaluate after each epoch, such as train[50000:]."""

    steps_per_call: int = 67
    """Largest number of steps that one call of the compiled program runs; a stop waits for one call or two."""
    eval_batch_size: int = 1000
    """Examples an evaluation step; changes memory and speed, not the result."""
    checkpoint_every: int = 0
    """Also save every so many steps inside an epoch; 0 saves after each epoch only."""
    keep: int = 2
    """Latest checkpoints to keep; the best is kept as well."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What matrix products read; they sum in float32 all the same. bfloat16 is faster where the hardware has it."""

    def __post_init__(self) -> None:
        h = self.hparams
        # As float32, which is what a step computes with: 1e-60 is 0 there, and 0.99999999999 is 1.
        for name, low, high, example in (
            ("learning_rate", _TINY, _HUGE, "0.001"),
            ("l2", 0.0, _HUGE, "0.001"),
            ("max_norm", _TINY, _HUGE, "3"),
            ("dropout_rate", 0.0, _BELOW_1, "0.2"),
            ("label_smoothing", 0.0, _BELOW_1, "0.1"),
            ("b1", 0.0, _BELOW_1, "0.9"),
            ("b2", _TINY, _BELOW_1, "0.999"),
        ):
            value = getattr(h, name)
            limits = f"from {low:g} to {high:.8g}, such as {example}"
            _check(name, value, _is_number(value) and low <= value <= high, limits)
        _check_int("seed", h.seed, 0, 2**32 - 1)
        _check("widths", self.widths, len(self.widths) <= 64, "at most 64 layers")
        ok = all(_is_int(width) and 1 <= width <= 2**16 for width in self.widths)
        _check("widths", self.widths, ok, "units from 1 to 65536, such as 512 512")
        for name, layers, last in (
            ("batch_norm_layers", self.batch_norm_layers, len(self.widths)),
            ("l2_layers", self.l2_layers, len(self.widths) + 1),
            ("max_norm_layers", self.max_norm_layers, len(self.widths) + 1),
        ):
            ok = all(_is_int(layer) and 1 <= layer <= last for layer in layers) and len(set(layers)) == len(layers)
            _check(name, layers, ok, f"different layers from 1 to {last} (for widths={self.widths}), or none")

        ok = _is_number(self.adam_epsilon) and _TINY <= self.adam_epsilon <= 1
        _check("adam_epsilon", self.adam_epsilon, ok, f"from {_TINY:g} to 1, such as 1e-7")
        for name in ("schedule", "precision"):
            value, choices = getattr(self, name), typing.get_args(typing.get_type_hints(Config)[name])
            _check(name, value, value in choices, f"one of {', '.join(choices)}")
        for name, low, high in (
            ("epochs", 1, 10**6), ("batch_size", 1, 2**20), ("eval_batch_size", 1, 2**20),
            ("steps_per_call", 1, 10**6), ("checkpoint_every", 0, 10**9), ("keep", 1, 10**6),
        ):  # fmt: skip
            _check_int(name, getattr(self, name), low, high)
        ok = _is_number(self.warmup_epochs) and 0 <= self.warmup_epochs <= self.epochs
        _check("warmup_epochs", self.warmup_epochs, ok, f"from 0 to epochs={self.epochs}")

        # A dataset names a directory: nothing in it may climb out of the data directory.
        ok = isinstance(self.dataset, str) and re.fullmatch(
            r"[a-z]\w*(/[A-Za-z0-9][\w.\-]*)?(:\d+\.\d+\.\d+)?", self.dataset, re.ASCII
        )
        _check("dataset", self.dataset, ok, "a TFDS name such as mnist or emnist/digits")
        for name in ("train_split", "eval_split"):
            split = getattr(self, name)
            ok = isinstance(split, str) and re.fullmatch(r"[\w\[\]:%+\-() ]+", split, re.ASCII)
            _check(name, split, ok, "a TFDS split such as train, test or train[:50000]")


def to_json(config: Config) -> dict[str, Any]:
    """The whole config as plain JSON values, but for `_LATER` defaults; `from_json` is its inverse."""
    tree = {n: v for n, v in dataclasses.asdict(config).items() if n not in _LATER or v != getattr(Config, n)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in tree.items()}


def from_json(tree: object, where: str, remedy: str = _RESTORE) -> Config:
    """Read what `to_json` wrote, as strictly as the command line.

    Args:
      tree: the parsed JSON.
      where: the file, for the message.
      remedy: what to do about it, for the message.

    Raises:
      InputError: a field is missing, unknown, of the wrong type or out of range.
    """
    values = _fields_of(Config, tree, where, remedy)
    values["hparams"] = Hyperparams(**_fields_of(Hyperparams, values["hparams"], f"{where}: hparams", remedy))
    try:
        return Config(**values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def flat(config: Config) -> dict[str, Any]:
    """Every field by its flag's name, the hyperparameters among them."""
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name != "hparams"}
    return dataclasses.asdict(config.hparams) | values


def _fields_of(cls: type, tree: object, where: str, remedy: str) -> dict[str, Any]:
    """The values of `cls`'s fields in `tree`, lists as tuples; raises `InputError` unless they fit exactly."""
    if not isinstance(tree, dict):
        raise InputError(f"{where} must be an object of fields, not {tree!r:.40}; {remedy}")
    hints = {n: hint for n, hint in typing.get_type_hints(cls).items() if n in tree or n not in _LATER}
    for what, names in (("lacks", hints.keys() - tree.keys()), ("has the unknown", tree.keys() - hints.keys())):
        if names:
            raise InputError(f"{where} {what} field {', '.join(sorted(names))}; {remedy}")
    values: dict[str, Any] = {}
    for name, hint in hints.items():
        value: Any = tuple(tree[name]) if isinstance(tree[name], list) else tree[name]
        kind = typing.get_origin(hint) or hint
        kind = {Literal: str, Hyperparams: dict, float: (int, float)}.get(kind, kind)
        if not isinstance(value, typing.cast(type | types.UnionType, kind)) or isinstance(value, bool):
            raise InputError(f"{where}: {name}={value!r:.60} has the wrong type; {remedy}")
        try:
            values[name] = float(value) if hint is float else value
        except OverflowError:
            raise InputError(f"{where}: {name} is out of range; {remedy}") from None
    return values


def _check(name: str, value: object, ok: object, remedy: str) -> None:
    if not ok:
        raise InputError(f"{name}={value!r} is out of range; give {remedy}")


def _check_int(name: str, value: object, low: int, high: int) -> None:
    ok = _is_int(value) and low <= typing.cast(int, value) <= high
    _check(name, value, ok, f"a whole number from {low} to {high}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

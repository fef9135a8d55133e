"""Check what the storage of a sweep holds: somebody else may have written it."""

import json
import math
import re
from collections.abc import Iterable
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from mnist_flax.errors import InputError
from mnist_flax.process import files


def check_trials(trials: Iterable[FrozenTrial]) -> None:
    """Raise `InputError` unless what a storage holds, which somebody else may have written, can be a sweep's."""
    for trial in trials:
        attributes, done = trial.user_attrs, trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        member, overrides = attributes.get("member", ""), attributes.get("overrides", {})
        ok = isinstance(member, str) and isinstance(overrides, dict) and _is_step(attributes.get("directory", 0))
        ok = ok and re.fullmatch(r".* \d{1,9}", str(attributes.get("worker", " 1"))) is not None
        if ok and member.startswith("{") and "overrides" in attributes:  # of a grid
            ok = member == json.dumps(overrides, sort_keys=True)
        if ok and done and "member" in attributes:
            ok = _is_result(trial)
        if not ok:
            text = f"trial {trial.number} in the sweep's storage is damaged"
            raise InputError(f"{text}; restore it, or begin another sweep")


def _is_result(trial: FrozenTrial) -> bool:
    """Whether a finished trial holds a member's results, and its value is the last accuracy of its history."""
    attributes = trial.user_attrs
    kinds = {"overrides": dict, "history": list, "versions": dict, "commit": str, "workdir": str}
    pieces = [value for name, value in attributes.items() if re.fullmatch(r"history( \d+)?", name, re.ASCII)]
    if not (files.has_fields(attributes, kinds) and all(isinstance(piece, list) for piece in pieces)):
        return False
    lines = [line for piece in pieces for line in piece]
    texts = [attributes["commit"], *attributes["versions"], *attributes["versions"].values()]
    if not all(map(_is_line, lines)) or not all(isinstance(text, str) and text.isprintable() for text in texts):
        return False
    last = max((line for line in lines if line["split"] == "eval"), key=lambda line: line["step"], default=None)
    return (
        re.fullmatch(r"(members|final)/\d+", attributes["workdir"], re.ASCII) is not None
        and _is_number(attributes.get("seconds"))
        and "diverged_at" in attributes
        and (isinstance(attributes.get("stopped", {}), dict) and isinstance(attributes.get("lineage", []), list))
        and (attributes["diverged_at"] is None or _is_step(attributes["diverged_at"]))
        and (trial.state != TrialState.COMPLETE or (last is not None and _is_value(trial.values, last["accuracy"])))
    )


def _is_value(values: Any, accuracy: float) -> bool:
    """Whether it is the one value of a trial, up to what a database rounds."""
    is_one = isinstance(values, list) and len(values) == 1 and _is_number(values[0])
    return is_one and math.isclose(values[0], accuracy, abs_tol=1e-9)


def _is_line(line: Any) -> bool:
    """Whether JSON is a line of `metrics.jsonl`; those of older versions have fewer fields."""
    return (
        files.has_fields(line, {"loss": (int, float), "accuracy": (int, float)})
        and line.get("split") in ("train", "eval")
        and all(_is_step(line.get(name)) for name in ("step", "epoch"))
        and all(_is_number(value) for name, value in line.items() if name != "split")
        and 0 <= line["accuracy"] <= 1
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e39  # not NaN; larger than any float32


def _is_step(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53

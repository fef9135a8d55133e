"""Resume a run from its latest checkpoint, and keep its history.

The history holds the lines of `metrics.jsonl`, the best step and the unfinished epoch. Every checkpoint carries it, as
JSON values, so that `metrics.jsonl` can always be written again.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from mnist_flax import metrics
from mnist_flax.config import Config
from mnist_flax.errors import InputError, RunError
from mnist_flax.loop import Event
from mnist_flax.metrics import Metrics
from mnist_flax.process import files
from mnist_flax.program import Program, make_program
from mnist_flax.state import TrainState, as_arrays, init_state
from mnist_flax.workdir import checkpoint, claim
from mnist_flax.workdir.run_info import RunInfo, differing, identity_of


def new_history(run: RunInfo) -> dict[str, Any]:
    """The history of a run before its first step, with the run's identity (see `run_info.identity_of`).

    history: the lines of `metrics.jsonl`; running: totals and seconds of the unfinished epoch.
    """
    return {"history": [], "best_step": None, "running": None} | identity_of(run)


def update_history(
    history: dict[str, Any], event: Event, config: Config, program: Program
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Add a call to a run's history, in place; return the epoch's means so far and, once it is over, its two lines."""
    before = history["running"] or {"totals": None, "seconds": 0.0}
    totals = metrics.add(before["totals"], metrics.totals_of(event.metrics))
    running = {"totals": totals, "seconds": before["seconds"] + event.seconds}
    so_far = metrics.summary(totals)
    if event.evaluation is None:
        history["running"] = running
        return so_far, []
    history["running"] = None
    learning_rate = config.hparams.learning_rate * float(program.schedule_factor(event.step - 1))
    scores = metrics.summary(metrics.totals_of(event.evaluation))
    lines = []
    for split, means, seconds in (("train", so_far, running["seconds"]), ("eval", scores, event.evaluation_seconds)):
        line = {"step": event.step, "epoch": event.epoch, "split": split, **means}
        lines.append(line | {"learning_rate": learning_rate, "seconds": round(seconds, 3)})
    history["history"] += lines
    evals = [line for line in history["history"] if line["split"] == "eval"]
    history["best_step"] = max(evals, key=lambda line: line["accuracy"])["step"]  # the first of equals
    return so_far, lines


class Saved(NamedTuple):
    """A run at one of its steps."""

    program: Program
    step: int  # finished updates
    state: TrainState | None  # leaves are numpy arrays; None before the first step
    history: dict[str, Any]  # see `new_history`


def load(
    workdir: Path, run: RunInfo, which: str | int, *, warn: Callable[[str], None], set_aside: bool = False
) -> Saved:
    """A checkpoint of a run: a step, `latest` or `best`; raises what `checkpoint.restore` raises.

    Raises `RunError` too if it has been renamed, or its history is not one.
    """
    program = make_program(run.config, run.data)
    like = jax.eval_shape(functools.partial(init_state, program=program), as_arrays(run.config.hparams))
    restore = functools.partial(
        checkpoint.restore,
        claim.checkpoints_dir(workdir),
        differing=functools.partial(differing, run),
        like=like,
        warn=warn,
        set_aside=set_aside,
    )
    if which == "best":
        step, _, history = restore("latest")
        _check_history(history, claim.checkpoints_dir(workdir) / str(step))
        which = _best(history, checkpoint.steps(claim.checkpoints_dir(workdir)), workdir, warn)
    saved = Saved(program, *restore(which))
    path = claim.checkpoints_dir(workdir) / str(saved.step)
    if saved.state is not None and int(saved.state.step) != saved.step:
        raise RunError(f"{path} holds step {int(saved.state.step)}: it has been renamed; give it its name back")
    _check_history(saved.history, path)
    return saved


def _check_history(history: dict[str, Any], path: Path) -> None:
    """Raise `RunError` unless the history in a checkpoint, which somebody else may have written, is one."""
    number = (int, float)
    fields = {"step": int, "epoch": int, "split": str, "accuracy": number, "examples": int}
    lines, running = history.get("history"), history.get("running")
    ok = isinstance(lines, list) and all(files.has_fields(line, fields) for line in lines)
    ok = ok and isinstance(history.get("best_step"), (int, type(None)))
    try:
        ok = ok and (running is None or files.has_fields(running, {"totals": dict, "seconds": number}))
        metrics.add(running and running["totals"], dict.fromkeys(Metrics._fields, 0.0))
    except (KeyError, TypeError):
        ok = False
    if not ok:
        raise RunError(f"{path} holds no history of a run (or a damaged one); restore it or give another --step")


def _best(history: dict[str, Any], saved: list[int], workdir: Path, warn: Callable[[str], None]) -> int:
    """The best of the saved steps: that of the whole run, but a sweep does not save its members after every epoch."""
    accuracies = {line["step"]: line["accuracy"] for line in history["history"] if line["split"] == "eval"}
    scored = [step for step in saved if step in accuracies]
    if not scored:
        raise InputError(f"{workdir} has no best checkpoint before the first evaluation; give --step latest")
    best = max(scored, key=lambda step: accuracies[step])  # the first of equals
    if best != history["best_step"]:
        warn(f"the best step of {workdir}, {history['best_step']}, was not saved; step {best} is the best that was")
    return best


def resume(workdir: Path, run: RunInfo, *, warn: Callable[[str], None], set_aside: bool) -> Saved:
    """The latest sound checkpoint of a run, or its beginning. The directory must be claimed.

    `set_aside`: rename damaged checkpoints. Raises `RunError` if there were checkpoints and none of them is sound.
    """
    directory = claim.checkpoints_dir(workdir)
    checkpoint.clean(directory)
    if checkpoint.exists(directory):
        return load(workdir, run, "latest", warn=warn, set_aside=set_aside)
    if claim.was_saved(workdir):
        raise RunError(f"{directory} had checkpoints and has none now; restore them, or start in another --workdir")
    return Saved(make_program(run.config, run.data), 0, None, new_history(run))

"""What a run has recorded: the lines of `metrics.jsonl`, the best step, and the unfinished epoch.

Every checkpoint carries it, as JSON values, so `metrics.jsonl` is a view of it and can always be restored.
"""

from typing import Any

from mnist_flax import metrics
from mnist_flax.config import Config
from mnist_flax.loop import Event
from mnist_flax.program import Program
from mnist_flax.workdir.run_info import RunInfo, identity_of


def new_history(run: RunInfo) -> dict[str, Any]:
    """What the checkpoints of a run carry, before its first step; with the run's identity (see `run_info`).

    history: the lines of `metrics.jsonl`; running: totals and seconds of the unfinished epoch.
    """
    return {"history": [], "best_step": None, "running": None} | identity_of(run)


def update_history(
    history: dict[str, Any], event: Event, config: Config, program: Program
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Add a call to a run's history; the running epoch's means so far, and after its last call its two lines."""
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
    for split, means, seconds in (
        ("train", so_far, running["seconds"]),
        ("eval", scores, event.evaluation_seconds),
    ):
        line = {"step": event.step, "epoch": event.epoch, "split": split, **means}
        lines.append(line | {"learning_rate": learning_rate, "seconds": round(seconds, 3)})
    history["history"] += lines
    evals = [line for line in history["history"] if line["split"] == "eval"]
    history["best_step"] = max(evals, key=lambda line: line["accuracy"])["step"]  # the first of equals
    return so_far, lines

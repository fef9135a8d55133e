"""What a run says and writes as it goes: its introduction, its metrics, its result.

log = Log(workdir, config, make_tx, info, scribe)
log.record(event, progress)  # a line an epoch on the terminal, two in `metrics.jsonl`; figures and event files
"""

import shutil
import time
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.box import SIMPLE

from mnist_flax import console, metrics, record, workdir, writer
from mnist_flax.config import Config
from mnist_flax.fit import Event, Plan
from mnist_flax.model import MLP
from mnist_flax.scribe import Epoch, Scribe, Steps
from mnist_flax.state import MakeTx
from mnist_flax.steps import GRADIENT_NORM_EVERY

_EVERY = 2.0  # seconds between what the scribe is told within an epoch


class Log:
    """The run's metrics: on the terminal, in `metrics.jsonl`, at the scribe's, and in `info` for the checkpoints."""

    def __init__(
        self, path: Path | None, config: Config, make_tx: MakeTx, info: dict[str, Any], scribe: Scribe
    ) -> None:
        """Write below `path`; None, in a process that does not lead, writes nothing."""
        self.info, self._scribe = info, scribe
        self._file, self._config = path and workdir.metrics_file(path), config
        self._unit_schedule = make_tx.unit_schedule()
        self._steps: list[dict[str, np.ndarray]] = []  # not told yet
        self._last, self._told_at = 0, time.monotonic()

    def record(self, event: Event, progress: console.Progress) -> None:
        """Add a call; behind an epoch's last one, write its two lines."""
        name = f"epoch {event.epoch}/{self._config.epochs}"
        so_far, lines = account(self.info, event, self._config, self._unit_schedule)
        progress.update(event.step, f"{name}  loss {so_far['loss']:.4f}  accuracy {so_far['accuracy']:.4f}")
        self._steps.append(self._scalars(event))
        self._last = event.step
        if lines or time.monotonic() - self._told_at > _EVERY:  # a message wakes a process: not at every call
            self._tell_steps()
        if not lines:
            return
        params = jax.tree.map(np.array, event.state.params)  # a copy: the next step donates it
        self._scribe.tell(Epoch(lines, params, event.logits))
        if self._file:
            for line in lines:
                writer.append(self._file, line)
        train, score = lines
        progress.say(
            f"{name} {train['seconds']:6.1f} s   train: loss {train['loss']:.4f}, accuracy {train['accuracy']:.2%}"
            f"   {self._config.eval_split}: loss {score['loss']:.4f}, accuracy {score['accuracy']:.2%}"
        )

    def settle(self) -> None:
        """Let nothing of what a checkpoint is about to call done be told by this process alone, which may be killed."""
        self._tell_steps()
        self._scribe.wait()

    def _tell_steps(self) -> None:
        if self._steps:
            joined = {name: np.concatenate([each[name] for each in self._steps]) for name in self._steps[0]}
            self._scribe.tell(Steps(self._last, joined))
        self._steps, self._told_at = [], time.monotonic()

    def _scalars(self, event: Event) -> dict[str, np.ndarray]:
        """Of every step of a call, [K] each; NaN where nothing was measured."""
        sums = {name: np.asarray(leaf) for name, leaf in event.metrics._asdict().items()}
        examples, steps = sums["examples"], len(sums["examples"])
        cross_entropy, penalty = sums["cross_entropy"] / examples, sums["l2_penalty"] / examples
        before = np.arange(event.step - steps, event.step)  # finished updates before each
        rates = np.asarray(self._unit_schedule(before))
        measured = before % GRADIENT_NORM_EVERY == 0
        return {
            "loss": cross_entropy + penalty,
            "cross_entropy": cross_entropy,
            "l2_penalty": penalty,
            "accuracy": sums["correct"] / examples,
            "gradient_norm": np.where(measured, sums["gradient_norm"], np.nan),
            "learning_rate": np.broadcast_to(self._config.hparams.learning_rate * rates, steps),
        }

    def result(self) -> str:
        """What the last evaluation said, as a count."""
        last = self.info["history"][-1]
        right = round(last["accuracy"] * last["examples"])
        return (
            f"{self._config.eval_split} accuracy: {right:,} of {last['examples']:,} ({last['accuracy']:.2%}) "
            f"after {_count(last['epoch'], 'epoch')}."
        )


def new_info(recorded: record.Run) -> dict[str, Any]:
    """What the checkpoints of a run carry, before its first step.

    history: the lines of `metrics.jsonl`; best_step; running: totals and seconds of the unfinished epoch; and the run's
    identity (see `record`).
    """
    return {"history": [], "best_step": None, "running": None} | record.identity_of(recorded)


def account(
    info: dict[str, Any], event: Event, config: Config, unit_schedule: optax.Schedule
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Add a call to a run's `info`.

    Returns:
      The running epoch's means so far; behind its last call, its two lines, train and eval.
    """
    before = info["running"] or {"totals": None, "seconds": 0.0}
    totals = metrics.add(before["totals"], metrics.totals_of(event.metrics))
    running = {"totals": totals, "seconds": before["seconds"] + event.seconds}
    so_far = metrics.summary(totals)
    if event.evaluation is None:
        info["running"] = running
        return so_far, []
    info["running"] = None
    rate = config.hparams.learning_rate * float(np.asarray(unit_schedule(event.step - 1)))
    scores = metrics.summary(metrics.totals_of(event.evaluation))
    lines = []
    for split, means, seconds in (
        ("train", so_far, running["seconds"]),
        ("eval", scores, event.evaluation_seconds),
    ):
        line = {"step": event.step, "epoch": event.epoch, "split": split, **means}
        lines.append(line | {"learning_rate": rate, "seconds": round(seconds, 3)})
    info["history"] += lines
    evals = [line for line in info["history"] if line["split"] == "eval"]
    info["best_step"] = max(evals, key=lambda line: line["accuracy"])["step"]  # the first of equals
    return so_far, lines


def introduce(recorded: record.Run, model: MLP, plan: Plan, start: int) -> None:
    """Say what is going to be trained, on what."""
    config, facts = recorded.config, recorded.data
    width = shutil.get_terminal_size((100, 24)).columns
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    style = {"box": SIMPLE, "padding": (0, 1, 0, 0)}  # narrow, so that shapes are whole on 80 columns
    summary_of = nn.tabulate(
        model,
        rngs,
        console_kwargs={"force_terminal": False, "width": width},
        table_kwargs=style,
        column_kwargs={"overflow": "fold"},
    )
    images = jnp.zeros((config.batch_size, *facts["image_shape"]), jnp.uint8)
    console.say(summary_of(images, dropout_rate=config.hparams.dropout_rate, train=True).strip())
    shape = " x ".join(map(str, facts["image_shape"]))
    console.say(
        f"{config.dataset}: {facts['train_examples']:,} training images ({config.train_split}), "
        f"{facts['eval_examples']:,} for evaluation ({config.eval_split}), uint8 {shape}, "
        f"{len(facts['class_names'])} classes"
    )
    devices = jax.devices()
    resumed = f"; resumed at step {start:,}" if start else ""
    console.say(
        f"{_count(config.epochs, 'epoch')} of {_count(plan.steps_per_epoch, 'step')} of {config.batch_size} "
        f"on {_count(len(devices), f'{devices[0].platform} device')}{resumed}"
    )


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"

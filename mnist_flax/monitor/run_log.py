"""Log a run while it trains: to the terminal, to `metrics.jsonl`, and to the async writer."""

import shutil
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.box import SIMPLE

from mnist_flax.config import Config
from mnist_flax.loop import Event
from mnist_flax.monitor.async_writer import AsyncWriter, EpochDone, StepScalars
from mnist_flax.process.files import append_line
from mnist_flax.process.terminal import Progress, say
from mnist_flax.program import Program
from mnist_flax.state import inference_variables
from mnist_flax.steps import GRADIENT_NORM_EVERY
from mnist_flax.workdir import claim
from mnist_flax.workdir.resume import update_history
from mnist_flax.workdir.run_info import RunInfo

_SEND_SECONDS = 2.0  # between two messages within an epoch


class RunLog:
    """Keeps a run's history, and reports it to the terminal, to `metrics.jsonl` and to the async writer."""

    def __init__(
        self, path: Path | None, config: Config, program: Program, history: dict[str, Any], writer: AsyncWriter
    ) -> None:
        """Write `metrics.jsonl` into `path`; None, in all processes but the first, writes none."""
        self.history, self._writer = history, writer
        self._file, self._config, self._program = path and claim.metrics_file(path), config, program
        self._unsent: list[dict[str, np.ndarray]] = []  # scalars by step
        self._last, self._sent_at = 0, time.monotonic()

    def update(self, event: Event, progress: Progress) -> None:
        """Report a call of `loop.fit`; after an epoch's last one, also the epoch."""
        name = f"epoch {event.epoch}/{self._config.epochs}"
        so_far, lines = update_history(self.history, event, self._config, self._program)
        progress.update(event.step, f"{name}  loss {so_far['loss']:.4f}  accuracy {so_far['accuracy']:.4f}")
        self._unsent.append(self._scalars(event))
        self._last = event.step
        if lines or time.monotonic() - self._sent_at > _SEND_SECONDS:  # not at every call: a message wakes a process
            self._send_steps()
        if not lines:
            return
        params = jax.tree.map(np.array, inference_variables(event.state)["params"])  # a copy: the next step donates it
        first_layer = self._program.model.first_layer_pictures(params, self._program.image_shape)
        self._writer.send(EpochDone(lines, params, first_layer, event.logits))
        if self._file:
            for line in lines:
                append_line(self._file, line)
        train, score = lines
        progress.say(
            f"{name} {train['seconds']:6.1f} s   train: loss {train['loss']:.4f}, accuracy {train['accuracy']:.2%}"
            f"   {self._config.eval_split}: loss {score['loss']:.4f}, accuracy {score['accuracy']:.2%}"
        )

    def flush(self) -> None:
        """Return when every message is in the pipe. Call it before a checkpoint: earlier steps are never sent again."""
        self._send_steps()
        self._writer.flush()

    def _send_steps(self) -> None:
        if self._unsent:
            joined = {name: np.concatenate([each[name] for each in self._unsent]) for name in self._unsent[0]}
            self._writer.send(StepScalars(self._last, joined))
        self._unsent, self._sent_at = [], time.monotonic()

    def _scalars(self, event: Event) -> dict[str, np.ndarray]:
        """The scalars of every step of a call, [K] each; NaN where nothing was measured."""
        sums = jax.tree.map(np.asarray, event.metrics)
        cross_entropy, penalty = sums.cross_entropy / sums.examples, sums.l2_penalty / sums.examples
        before = np.arange(event.step - len(sums.examples), event.step)  # finished updates before each
        return {
            "loss": cross_entropy + penalty,
            "cross_entropy": cross_entropy,
            "l2_penalty": penalty,
            "accuracy": sums.correct / sums.examples,
            "gradient_norm": np.where(before % GRADIENT_NORM_EVERY == 0, sums.gradient_norm, np.nan),
            "learning_rate": self._config.hparams.learning_rate * self._program.schedule_factor(before),
        }

    def result(self) -> str:
        """The last evaluation's accuracy, in a sentence."""
        last = self.history["history"][-1]
        right = round(last["accuracy"] * last["examples"])
        return (
            f"{self._config.eval_split} accuracy: {right:,} of {last['examples']:,} ({last['accuracy']:.2%}) "
            f"after {_count(last['epoch'], 'epoch')}."
        )


def print_run_summary(run: RunInfo, program: Program, start: int) -> None:
    """Print the network, the data and the devices of a run that starts, or resumes, at step `start`."""
    config, data = run.config, run.data
    summary = program.model.tabulate(
        {"params": jax.random.key(0), "dropout": jax.random.key(0)},
        jnp.zeros((config.batch_size, *program.image_shape), jnp.uint8),
        dropout_rate=config.hparams.dropout_rate,
        train=True,
        console_kwargs={"force_terminal": False, "width": shutil.get_terminal_size((100, 24)).columns},
        table_kwargs={"box": SIMPLE, "padding": (0, 1, 0, 0)},  # narrow: shapes fit on 80 columns
        column_kwargs={"overflow": "fold"},
    )
    say(summary.strip())
    shape = " x ".join(map(str, program.image_shape))
    say(
        f"{config.dataset}: {data['train_examples']:,} training images ({config.train_split}), "
        f"{data['eval_examples']:,} for evaluation ({config.eval_split}), uint8 {shape}, {program.num_classes} classes"
    )
    devices = jax.devices()
    resumed = f"; resumed at step {start:,}" if start else ""
    say(
        f"{_count(config.epochs, 'epoch')} of {_count(program.steps_per_epoch, 'step')} of {config.batch_size} "
        f"on {_count(len(devices), f'{devices[0].platform} device')}{resumed}"
    )


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"

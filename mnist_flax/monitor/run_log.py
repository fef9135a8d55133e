"""Log a run while it trains: to the terminal, to `metrics.jsonl`, and to the async writer."""

import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mnist_flax.config import Config
from mnist_flax.loop import Event
from mnist_flax.monitor.async_writer import AsyncWriter, EpochDone, StepScalars
from mnist_flax.process.files import append_line
from mnist_flax.process.terminal import Progress, say, table
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

    def use(self, config: Config) -> None:
        """Log the learning rate of this config from now on."""
        self._config = config

    def update(self, event: Event, progress: Progress) -> None:
        """Report a call of `loop.run`; after an epoch's last one, also the epoch."""
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


def print_run_summary(run: RunInfo, program: Program, variables: dict[str, Any], start: int) -> None:
    """Print the network, the data and the devices of a run that starts, or resumes, at step `start`."""
    config, data = run.config, run.data
    say(_network(variables))
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


def _network(variables: dict[str, Any]) -> str:
    """The arrays of each layer, in the order of the layers' numbers, and how many numbers that makes."""
    layers: dict[str, dict[str, Any]] = {}
    for collection in variables.values():
        for path, leaf in jax.tree_util.tree_leaves_with_path(collection):
            *layer, name = (key.key for key in path)
            layers.setdefault("/".join(layer), {})[name] = leaf
    rows = [["layer", "arrays", "parameters"]]
    for layer in sorted(layers, key=lambda name: (int(name.rpartition("_")[2]), "kernel" not in layers[name])):
        by_size = sorted(layers[layer].items(), key=lambda array: -array[1].size)
        arrays = [f"{name} {' x '.join(map(str, leaf.shape))}" for name, leaf in by_size]
        rows.append([layer, ", ".join(arrays), f"{sum(leaf.size for leaf in layers[layer].values()):,}"])
    leaves = jax.tree.leaves(variables)
    total, megabytes = sum(leaf.size for leaf in leaves), sum(leaf.nbytes for leaf in leaves) / 1e6
    statistics = sum(leaf.size for leaf in jax.tree.leaves(variables["batch_stats"]))
    running = f", {statistics:,} of them BatchNorm's running statistics" if statistics else ""
    return f"{table(rows, ['parameters'])}\n{total:,} parameters ({megabytes:.1f} MB){running}\n"


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"

"""Write a run's figures and TensorBoard files, as a separate process that reads `async_writer`'s messages from stdin.

python -m mnist_flax.monitor.writer_process --figures --tensorboard < messages

It ends when the pipe does, however training ended. If it cannot write, it ends with a warning of one line.
"""

import os
import pickle
import sys
import time
from typing import TYPE_CHECKING

import numpy as np

from mnist_flax.config import flatten
from mnist_flax.figures import pictures
from mnist_flax.figures.axes import save
from mnist_flax.figures.charts import curves
from mnist_flax.monitor.async_writer import EpochDone, Message, RunFinished, RunStarted, StepScalars
from mnist_flax.monitor.tensorboard import TensorBoardWriter
from mnist_flax.process import signals
from mnist_flax.process.terminal import warn

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

_DRAW_SECONDS = 10.0  # between two drawings


def main() -> None:
    """Handle messages until the pipe ends."""
    signals.ignore()  # training handles them, and then ends the pipe
    if "--traceback" not in sys.argv:
        sys.excepthook = _failed
    os.nice(19)  # training comes first
    np.seterr(all="ignore")  # training itself tells of numbers that overflow
    curves([], "").draw_without_rendering()  # the first figure takes longest: draw one while nothing waits

    if isinstance(started := _receive(), RunStarted):
        writer = WriterProcess(started)
        while message := _receive():
            writer.handle(message)
        writer.close()
    os._exit(0)  # at once, since training waits for it


class WriterProcess:
    """Writes figures/digits.png, figures/curves.png and tensorboard/."""

    def __init__(self, started: RunStarted) -> None:
        """Write what is known before training."""
        self._started, self._history = started, [*started.history]
        self._epoch: EpochDone | None = None  # the latest, until it is drawn
        self._drawn_at = time.monotonic()
        self._names = list(started.dataset.class_names)
        self._draws, self._tensorboard = "--figures" in sys.argv, None
        if "--tensorboard" in sys.argv:
            self._tensorboard = TensorBoardWriter(started.path / "tensorboard", started.start)
            self._tensorboard.describe(started.config, started.graph)
            self._tensorboard.hyperparameters(flatten(started.config))
        if self._draws:
            train = started.dataset.read(started.config.train_split)
            self._save("digits", pictures.digits(train.images[:9], train.labels[:9], self._names))

    def handle(self, message: Message) -> None:
        """Write what a message reports."""
        match message:
            case StepScalars() if self._tensorboard:
                self._tensorboard.steps(message.values, message.last)
            case EpochDone():
                self._history += message.lines
                self._epoch = message
                is_last = message.lines[0]["epoch"] == self._started.config.epochs
                if self._tensorboard:
                    _, score = message.lines  # training's scalars were sent step by step
                    self._tensorboard.scores(score)
                    self._tensorboard.parameters(message.params, score["step"])
                if is_last or time.monotonic() - self._drawn_at > _DRAW_SECONDS:
                    self._draw()
            case RunFinished() if self._tensorboard:
                self._tensorboard.finish()
        if self._tensorboard:
            self._tensorboard.flush()

    def close(self) -> None:
        """Draw the last epoch, if it was not drawn, and close the event files."""
        if self._epoch:
            self._draw()
        if self._tensorboard:
            self._tensorboard.close()

    def _draw(self) -> None:
        """Draw the latest epoch."""
        epoch, self._epoch, self._drawn_at = self._epoch, None, time.monotonic()
        if self._draws:
            self._save("curves", curves(self._history, self._started.config.eval_split))
        if self._tensorboard and epoch:
            config, step = self._started.config, epoch.lines[0]["step"]
            self._tensorboard.first_layer(epoch.first_layer, step)
            if epoch.logits is not None:
                images, labels = self._started.dataset.read(config.eval_split)
                if mistakes := pictures.mistakes(images, labels, epoch.logits, self._names):
                    self._tensorboard.picture("mistakes", mistakes, step)

    def _save(self, name: str, figure: "Figure | Image") -> None:
        (self._started.path / "figures").mkdir(exist_ok=True)
        save(figure, self._started.path / "figures" / f"{name}.png")


def _receive() -> Message | None:
    try:
        return pickle.load(sys.stdin.buffer)
    except (EOFError, pickle.UnpicklingError):  # training has ended, maybe in the middle of a message
        return None


def _failed(kind: type[BaseException], error: BaseException, _: object) -> None:
    text = " ".join(str(error).split())[:300] or kind.__name__
    warn(f"figures and tensorboard end here ({text}); training goes on")


if __name__ == "__main__":
    main()

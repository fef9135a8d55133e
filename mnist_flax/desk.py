"""Where a scribe's messages become figures and event files.

python -m mnist_flax.desk --figures --tensorboard < messages

It ends with its pipe, however training ended, and says in one line what it cannot write.
"""

import os
import pickle
import signal
import sys
import time
from typing import TYPE_CHECKING

from mnist_flax import run_figures
from mnist_flax.canvas import save
from mnist_flax.config import flat
from mnist_flax.events import Events
from mnist_flax.scribe import Begin, End, Epoch, Message, Steps

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

_EVERY = 10.0  # seconds between two drawings while a run goes on


def main() -> None:
    """Take messages until the pipe ends."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)  # they are for the training, which then ends the pipe
    if "--traceback" not in sys.argv:
        sys.excepthook = _failed
    os.nice(19)  # training comes first
    run_figures.curves([], "").draw_without_rendering()  # what the first figure takes longer, while there is time

    if isinstance(begin := _receive(), Begin):
        desk = Desk(begin)
        while message := _receive():
            desk.take(message)
        desk.close()
    os._exit(0)  # without tearing down what ends anyway: training waits for it


class Desk:
    """Writes figures/digits.png and curves.png, and tensorboard/."""

    def __init__(self, begin: Begin) -> None:
        """Write what is known before the first step."""
        self._begin, self._history = begin, [*begin.history]
        self._epoch: Epoch | None = None  # the latest, until its pictures are drawn
        self._drawn_at = time.monotonic()
        self._names = list(begin.dataset.class_names)
        self._draws, self._events = "--figures" in sys.argv, None
        if "--tensorboard" in sys.argv:
            self._events = Events(begin.path / "tensorboard", begin.start)
            self._events.describe(begin.config, begin.graph)
            self._events.compare(flat(begin.config))
        if self._draws:
            train = begin.dataset.read(begin.config.train_split)
            self._save("digits", run_figures.digits(train.images[:9], train.labels[:9], self._names))

    def take(self, message: Message) -> None:
        """Write what a message tells."""
        match message:
            case Steps() if self._events:
                self._events.steps(message.values, message.last)
            case Epoch():
                self._history += message.lines
                self._epoch = message
                is_last = message.lines[0]["epoch"] == self._begin.config.epochs
                if self._events:
                    _, score = message.lines  # training has told its own, step by step
                    self._events.scores(score)
                    self._events.parameters(message.params, score["step"])
                if is_last or time.monotonic() - self._drawn_at > _EVERY:
                    self._draw()
            case End() if self._events:
                self._events.finish()
        if self._events:
            self._events.flush()

    def close(self) -> None:
        """Write what is left."""
        if self._epoch:
            self._draw()
        if self._events:
            self._events.close()

    def _draw(self) -> None:
        """Pictures of the latest epoch."""
        epoch, self._epoch, self._drawn_at = self._epoch, None, time.monotonic()
        if self._draws:
            self._save("curves", run_figures.curves(self._history, self._begin.config.eval_split))
        if self._events and epoch:
            config, step = self._begin.config, epoch.lines[0]["step"]
            self._events.first_layer(epoch.params, self._begin.dataset.image_shape, step)
            if epoch.logits is not None:
                images, labels = self._begin.dataset.read(config.eval_split)
                logits = epoch.logits.reshape(-1, len(self._names))[: len(labels)]
                self._events.picture("mistakes", run_figures.mistakes(images, labels, logits, self._names), step)

    def _save(self, name: str, figure: "Figure | Image") -> None:
        (self._begin.path / "figures").mkdir(exist_ok=True)
        save(figure, self._begin.path / "figures" / f"{name}.png")


def _receive() -> Message | None:
    try:
        return pickle.load(sys.stdin.buffer)
    except (EOFError, pickle.UnpicklingError):  # the training has ended, maybe in the middle of a message
        return None


def _failed(kind: type[BaseException], error: BaseException, _: object) -> None:
    text = " ".join(str(error).split())[:300] or kind.__name__
    print(f"warning: figures and tensorboard end here ({text}); training goes on", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

"""Tell the digits in pictures, by the network of a run.

python -m mnist_flax.predict --workdir exp1 seven.png photo.jpg
cat seven.png | python -m mnist_flax.predict --workdir exp1 - --json
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from mnist_flax.errors import InputError, wrong
from mnist_flax.metrics import softmax
from mnist_flax.process import cli
from mnist_flax.process.signals import StopSignals
from mnist_flax.process.terminal import printable, say, warn


@dataclass(frozen=True)
class Args:
    """Tell the digit in each picture, how probable it is, and the runner-up."""

    files: tyro.conf.Positional[tuple[str, ...]]
    """PNG or JPEG files, each of one digit, of any size, dark on light or light on dark; - is standard input."""
    workdir: Path
    """Directory of the run."""
    step: str = "latest"
    """The checkpoint: latest, best (by accuracy on the run's evaluation split) or a step."""
    json: bool = False
    """A JSON object a line instead of words: file, label, probability, runner_up, probabilities; or file, error."""


def run(args: Args, signals: StopSignals) -> None:
    """The command: a file that is not a picture is named, and the others still get their answers."""
    if not args.files:
        raise InputError("files is empty; give at least one PNG or JPEG file, or -")

    from mnist_flax import inference
    from mnist_flax.data import digits
    from mnist_flax.workdir import run_info

    path = args.workdir.expanduser().absolute()
    info = run_info.read(path)
    if (shape := info.data["image_shape"]) != [digits.SIDE, digits.SIDE, 1]:
        raise wrong("workdir", args.workdir, f"was trained on images of {shape}, not of digits", "give a run on digits")
    _, model, variables = inference.load_network(path, info, args.step)
    pictures: list[tuple[str, np.ndarray | InputError]] = []
    for file in args.files:
        try:
            source = sys.stdin.buffer.read(digits.MOST_BYTES + 1) if file == "-" else Path(file).expanduser()
            picture = digits.read(source)
            pictures.append((file, picture.T if inference.is_transposed(info.config.dataset) else picture))
        except InputError as error:
            pictures.append((file, error))
    images = [picture for _, picture in pictures if isinstance(picture, np.ndarray)]
    logits = iter(inference.logits_of(model, variables, np.stack(images), 100) if images else ())
    for file, picture in pictures:
        if isinstance(picture, InputError):
            if args.json:
                say(json.dumps({"file": file, "error": str(picture)}))
            else:
                warn(str(picture))
        else:
            _answer(file, next(logits), info.data["class_names"], args.json)
    if len(images) < len(pictures):
        raise InputError(f"{len(pictures) - len(images)} of {len(pictures)} files have no answer")


def _answer(file: str, logits: np.ndarray, names: list[str], as_json: bool) -> None:
    probabilities = softmax(logits[None])[0]
    first, second = np.argsort(-probabilities, kind="stable")[:2]
    if not as_json:
        said = [f"{names[index]} ({probabilities[index]:.1%})" for index in (first, second)]
        say(f"{printable(file)}: {said[0]}, then {said[1]}")
        return
    answer: dict[str, Any] = {"file": file, "label": names[first], "probability": float(probabilities[first])}
    answer["runner_up"] = {"label": names[second], "probability": float(probabilities[second])}
    answer["probabilities"] = dict(zip(names, map(float, probabilities), strict=True))
    say(json.dumps(answer))


if __name__ == "__main__":
    cli.main(Args, run)

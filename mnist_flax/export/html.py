"""A network as one HTML page that reads the digit one draws: the network is inside, and nothing is fetched.

html = render([(kernel, bias), ...], class_names=list("0123456789"), about={"accuracy": 0.98, "step": 1876})

The parts stand in `web/`: the markup, the style, the network in plain JavaScript, and what draws and shows. Before the
file is kept, the page's own JavaScript runs in V8, the engine of Chrome and Node.
"""

import base64
import hashlib
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from py_mini_racer import MiniRacer

from mnist_flax.export.network import TrainedNetwork, fold_batch_norm

_WEB = Path(__file__).with_name("web")
_DIGITS = list("0123456789")
_PIXELS = 28 * 28


def write(path: Path, network: TrainedNetwork, about: dict[str, Any]) -> None:
    """Write a network of images [28, 28, 1] and at most 10 classes, with its metadata in JSON values."""
    text = render(fold_batch_norm(network.dense_layers()), class_names=network.class_names, about=about)
    path.write_text(text, encoding="utf-8")


def logits(path: Path, images: np.ndarray) -> np.ndarray:
    """Logits float32 [N, C] that the page's own script gives for uint8 images [N, 28, 28, 1]."""
    with MiniRacer() as engine:
        engine.eval(_Script(path.read_text(encoding="utf-8")).text)
        engine.eval(
            "function all(images) { return images.map((image) => Array.from(forward(Uint8Array.from(image)))) }"
        )
        rows: Any = engine.call("all", images.reshape(len(images), -1).tolist())
    return np.array(rows, np.float32)  # NaN comes as None, which is NaN again


class _Script(HTMLParser):
    """The text of `<script id="network">`."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self._inside = "", False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag == "script" and ("id", "network") in attrs

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.text += data


def render(weights: list[tuple[np.ndarray, np.ndarray]], *, class_names: list[str], about: dict[str, Any]) -> str:
    """The page, complete.

    Its script `network` needs no browser. It defines `forward(pixels)`, 784 grey levels 0..255 to logits,
    `softmax(logits)` and `asMnist(grey, width, height)`, a drawing to 784 grey levels.

    Args:
      weights: for each layer its kernel, float32 [in, out], and bias, float32 [out]; relu stands between layers.
      class_names: one for each output.
      about: JSON values, all kept in the page; `accuracy` (0..1), `dataset`, `step` and `commit` are also shown.

    Raises `ValueError` if the shapes do not fit each other, 784 pixels or the classes, or a number is not finite.
    """
    sizes = [_PIXELS, *(bias.size for _, bias in weights)]
    shapes = [(kernel.shape, bias.shape) for kernel, bias in weights]
    if shapes != [((n, m), (m,)) for n, m in zip(sizes, sizes[1:], strict=False)] or sizes[-1] != len(class_names):
        raise ValueError(f"no network from {_PIXELS} pixels to {len(class_names)} classes has the shapes {shapes}")
    if not all(np.isfinite(array).all() for layer in weights for array in layer):
        raise ValueError("some weights are not finite")

    title = "Draw a digit" if class_names == _DIGITS else "Draw a picture"
    layers = [
        {"inputs": kernel.shape[0], "outputs": bias.size, "kernel": _base64(kernel), "bias": _base64(bias)}
        for kernel, bias in weights
    ]
    style = _part("page.css")
    network = f"{_part('network.js')}\nconst NETWORK = {_json(layers)};\n"
    drawing = "\n".join(map(_part, ("sketch.js", "view.js", "pens.js", "start.js")))
    return _filled(
        _part("page.html"),
        policy=_policy(style, [network, drawing]),
        title=html.escape(title),
        style=style,
        provenance=html.escape(_provenance(about, sizes)),
        about=_json(about | {"class_names": class_names}),
        network=network,
        drawing=drawing,
    )


def _part(name: str) -> str:
    return (_WEB / name).read_text(encoding="utf-8")


def _filled(template: str, **parts: str) -> str:
    """`template` with each {{name}} replaced, once: what looks like a name in a part is left alone."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(array.astype("<f4").tobytes()).decode()


def _json(value: object) -> str:
    """JSON that may stand in a script element: nothing in it can end the element."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")


def _policy(style: str, scripts: list[str]) -> str:
    """A Content Security Policy: this style and these scripts, the icon, and no request to anywhere."""

    def allowed(*texts: str) -> str:
        digests = (hashlib.sha256(text.encode()).digest() for text in texts)
        return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)

    return (
        f"default-src 'none'; style-src {allowed(style)}; script-src {allowed(*scripts)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _provenance(about: dict[str, Any], sizes: list[int]) -> str:
    """One line: what the network is and how well it does, as far as `about` says; it may break between facts only."""
    facts = ["-".join(map(str, sizes))]
    if isinstance(accuracy := about.get("accuracy"), (int, float)):
        facts.append(f"accuracy {accuracy:.2%}")
    if dataset := about.get("dataset"):
        facts.append(str(dataset))
    if isinstance(step := about.get("step"), int):
        facts.append(f"step {step:,}")
    if commit := about.get("commit"):
        facts.append(f"commit {str(commit)[:12]}")
    return " · ".join(fact.replace(" ", "\N{NO-BREAK SPACE}") for fact in facts)

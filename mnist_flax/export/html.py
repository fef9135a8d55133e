"""A network as one HTML page that works without a network connection; the page itself is `page`'s.

Its check runs the page's own JavaScript in V8, the engine of Chrome and Node.
"""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from py_mini_racer import MiniRacer

from mnist_flax.export import page
from mnist_flax.export.network import TrainedNetwork, fold_batch_norm


def write(path: Path, network: TrainedNetwork, about: dict[str, Any]) -> None:
    """Write a network of images [28, 28, 1] and at most 10 classes, with its metadata in JSON values."""
    text = page.render(fold_batch_norm(network.dense_layers()), class_names=network.class_names, about=about)
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

"""A page of a trained network in a browser of one's own, and a hand that draws; used by the tests of the page."""

import base64
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from conftest import Command
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

import mnist_flax
from mnist_flax.data import datasets
from mnist_flax.export.html import render
from mnist_flax.export.network import fold_batch_norm

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NEEDS_CHROMIUM = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome is installed"
)

DIGITS = list("0123456789")
Weights = list[tuple[np.ndarray, np.ndarray]]
Strokes = list[np.ndarray]  # each [points, 2], in units of the paper's side


def arc(x: float, y: float, rx: float, ry: float, start: int, end: int) -> np.ndarray:
    angle = np.radians(np.linspace(start, end, 14))
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)


def line(*points: tuple[float, float]) -> np.ndarray:
    return np.array(points)


DRAWN: dict[str, Strokes] = {  # as one learns them at school
    "0": [arc(0.5, 0.5, 0.19, 0.29, -80, 280)],
    "1": [line((0.53, 0.2), (0.52, 0.4), (0.5, 0.6), (0.48, 0.8))],
    "2": [np.concatenate([arc(0.5, 0.36, 0.17, 0.15, -160, 30), line((0.33, 0.79)), line((0.45, 0.79), (0.7, 0.78))])],
    "3": [np.concatenate([arc(0.48, 0.34, 0.16, 0.14, -150, 85), arc(0.48, 0.645, 0.18, 0.165, -85, 150)])],
    "4": [line((0.38, 0.22), (0.34, 0.5), (0.48, 0.51), (0.7, 0.49)), line((0.63, 0.22), (0.61, 0.45), (0.59, 0.8))],
    "5": [np.concatenate([line((0.65, 0.22), (0.42, 0.23), (0.38, 0.46)), arc(0.48, 0.61, 0.17, 0.165, -120, 145)])],
    "6": [np.concatenate([line((0.6, 0.2), (0.48, 0.33), (0.38, 0.5)), arc(0.49, 0.65, 0.14, 0.14, 180, -170)])],
    "7": [line((0.33, 0.25), (0.5, 0.24), (0.68, 0.23), (0.6, 0.42), (0.52, 0.6), (0.46, 0.8))],
    "9": [np.concatenate([arc(0.48, 0.36, 0.15, 0.14, -20, -380), line((0.6, 0.65), (0.56, 0.8))])],
}


class Network(NamedTuple):
    weights: Weights
    logits: np.ndarray  # [10000, 10], by JAX, of the test digits


@pytest.fixture(scope="session")
def network(
    command: Command,
    dataset: datasets.Dataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> Network:
    """Two epochs of training, BatchNorm folded in."""
    workdir = tmp_path_factory.mktemp("page") / "run"
    result = command("train", "--workdir", workdir, "--widths", "128", "128", "--epochs", "2")
    assert result.returncode == 0, result.stderr
    model, variables = mnist_flax.load(workdir)
    logits = np.asarray(model.apply(variables, dataset.read("test").images))
    return Network(fold_batch_norm(model.dense_layers(variables)), logits)


@pytest.fixture(scope="session")
def written(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(render(network.weights, class_names=DIGITS, about={"accuracy": 0.9686, "dataset": "mnist"}))
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        args = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=args)
        yield browser
        browser.close()


Opened = Callable[..., Page]


@pytest.fixture
def opened(browser: Browser) -> Iterator[Opened]:
    """Open a file; in the end, whatever was done to it, it made no error and no request."""
    pages, wrong = [], []

    def open_file(path: Path, width: int = 1440, height: int = 900, **settings: object) -> Page:
        settings = {"reduced_motion": "reduce"} | settings
        page = browser.new_context(viewport={"width": width, "height": height}, **settings).new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: request.url in (path.as_uri(), "data:") or wrong.append(request.url))
        page.on("websocket", lambda socket: wrong.append(socket.url))
        page.goto(path.as_uri())
        pages.append(page)
        return page

    yield open_file
    for page in pages:
        settle(page)
        page.context.close()
    assert not wrong


def settle(page: Page) -> None:
    """What was done is shown in the next frame."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def draw(page: Page, strokes: Strokes) -> list[str]:
    """With the mouse; what the ten rows said on the way."""
    box, said = page.locator("#paper").bounding_box(), []
    for stroke in strokes:
        points = np.array([box["x"], box["y"]]) + stroke * box["width"]
        page.mouse.move(*points[0])
        page.mouse.down()
        for x, y in points[1:]:
            page.mouse.move(x, y)
        settle(page)
        said.append(page.locator("#probabilities").inner_text())
        page.mouse.up()
    settle(page)
    return said


def grey_of(url: str) -> np.ndarray:
    """The levels of a canvas, from its data URL: uint8 [H, W]."""
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as picture:
        return np.asarray(picture.convert("L"))


def answer(page: Page) -> str:
    settle(page)
    return page.locator("#answer").inner_text()


def strokes_in(page: Page) -> int:
    return page.evaluate("sketch.strokes.length")

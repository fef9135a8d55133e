"""The page in a real browser, driven by pointers and keys: it reads what is drawn, as JAX would, and asks nobody."""

import base64
import io
import itertools
import json
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
from mnist_flax import data, digits
from mnist_flax.page import render

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome is installed")

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


@pytest.fixture(scope="module")
def network(command: Command, dataset: data.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Network:
    """Two epochs of training, BatchNorm folded in."""
    workdir = tmp_path_factory.mktemp("page") / "run"
    result = command("train", "--workdir", workdir, "--widths", "128", "128", "--epochs", "2")
    assert result.returncode == 0, result.stderr
    model, variables = mnist_flax.load(workdir)
    logits = np.asarray(model.apply(variables, dataset.read("test").images))

    params, stats = variables["params"], variables["batch_stats"]["batch_norm_2"]
    layers = [[np.asarray(params[f"dense_{i}"][part], np.float64) for part in ("kernel", "bias")] for i in (1, 2, 3)]
    gain = np.asarray(params["batch_norm_2"]["scale"], np.float64) / np.sqrt(np.asarray(stats["var"]) + 1e-3)
    kernel, bias = layers[1]
    layers[1] = [kernel * gain, (bias - np.asarray(stats["mean"])) * gain + np.asarray(params["batch_norm_2"]["bias"])]
    return Network([(kernel.astype(np.float32), bias.astype(np.float32)) for kernel, bias in layers], logits)


@pytest.fixture(scope="module")
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


def test_all_test_digits_as_jax_reads_them(
    written: Path, network: Network, dataset: data.Dataset, opened: Opened
) -> None:
    images = np.asarray(dataset.read("test").images)
    page = opened(written)
    got = page.evaluate(
        """(images) => {
          const bytes = bytesOf(images), logits = [];
          for (let i = 0; i < bytes.length; i += 784) logits.push([...forward(bytes.subarray(i, i + 784))]);
          return JSON.stringify([logits, [...softmax(logits[0])]]);
        }""",
        base64.b64encode(images.tobytes()).decode(),
    )
    logits, first = map(np.array, json.loads(got))
    assert logits.shape == (10_000, 10)
    np.testing.assert_array_equal(logits.argmax(axis=1), network.logits.argmax(axis=1))
    np.testing.assert_allclose(logits, network.logits, rtol=0, atol=1e-4)
    powers = np.exp(network.logits[0].astype(float))
    np.testing.assert_allclose(first, powers / powers.sum(), rtol=1e-4)


def varied(strokes: Strokes, rng: np.random.Generator) -> list[list[dict[str, float]]]:
    """Slanted, turned, stretched, moved, and by a trembling hand."""
    angle, slant, stretch = rng.normal(0, 0.1), rng.normal(0, 0.1), rng.uniform(0.85, 1.15)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    change = rng.uniform(0.7, 1.2) * turn @ np.array([[stretch, slant], [0, 1]])
    shift = 0.5 + rng.uniform(-0.08, 0.08, 2)
    made = [(stroke - 0.5) @ change.T + shift + rng.normal(0, 0.008, stroke.shape) for stroke in strokes]
    return [[{"x": x, "y": y, "width": 0.078} for x, y in stroke.tolist()] for stroke in made]


def test_variations_are_recognised_and_normalised_as_python_does(written: Path, opened: Opened) -> None:
    rng = np.random.default_rng(0)
    page = opened(written)
    right, apart = 0, 0
    for name in DRAWN:
        for got in page.evaluate(
            """(drawings) => drawings.map((strokes) => {
              const picture = pictureOf(strokes), logits = forward(picture);
              return { plate: plate.toDataURL(), picture: [...picture], answer: logits.indexOf(Math.max(...logits)) };
            })""",
            [varied(DRAWN[name], rng) for _ in range(10)],
        ):
            right += str(got["answer"]) == name
            want = digits.as_mnist(grey_of(got["plate"]))
            apart = max(apart, np.abs(np.array(got["picture"]) - want.ravel()).max())
    assert right >= 0.97 * 10 * len(DRAWN)
    assert apart <= 1


@pytest.mark.parametrize("size", [(1, 1), (9, 17), (20, 20), (20, 33), (90, 41)])
def test_any_picture_is_normalised_as_python_does(size: tuple[int, int], written: Path, opened: Opened) -> None:
    page = opened(written)
    normalise = (
        "(args) => { const made = asMnist(Uint8Array.from(args[0]), args[1], args[2]); return made && [...made]; }"
    )
    for ground in (0, 20):
        picture = np.full((size[0] + 6, size[1] + 10), ground, np.uint8)
        picture[2 : 2 + size[0], 3 : 3 + size[1]] = np.random.default_rng(0).integers(ground, 256, size)
        picture[2, 3] = 255
        height, width = picture.shape
        got = page.evaluate(normalise, [picture.ravel().tolist(), width, height])
        assert np.abs(np.array(got) - digits.as_mnist(picture).ravel()).max() <= 1
    assert page.evaluate(normalise, [np.full(99, 30).tolist(), 9, 11]) is None


def test_drawn_digits_are_recognised_while_they_are_drawn(written: Path, opened: Opened) -> None:
    page = opened(written, reduced_motion="no-preference")
    for name, strokes in DRAWN.items():
        said = draw(page, strokes)
        assert answer(page) == name
        rows = page.locator("#probabilities li").all_inner_texts()
        percents = [float(row.split()[1]) for row in rows]
        assert [row.split()[0] for row in rows] == DIGITS and abs(sum(percents) - 100) < 1
        assert np.argmax(percents) == int(name)
        assert len(strokes) == 1 or said[0] != said[1]  # of a four, the first stroke alone is something else
        page.keyboard.press("Escape")
        assert answer(page) == "?"
    draw(page, DRAWN["5"])
    seen = grey_of(page.evaluate("document.getElementById('seen').toDataURL()"))
    assert seen.ravel().tolist() == page.evaluate("[...pictureOf(sketch.strokes)]")


def test_a_finger_and_a_pen(written: Path, opened: Opened) -> None:
    page = opened(written, 360, 740, has_touch=True, device_scale_factor=3)
    box = page.locator("#paper").bounding_box()
    devtools = page.context.new_cdp_session(page)

    def touch(kind: str, *points: np.ndarray) -> None:
        at = [
            {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["width"], "id": i}
            for i, (x, y) in enumerate(points)
        ]
        devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": at})

    two, aside = DRAWN["2"][0], np.array([0.9, 0.9])
    touch("touchStart", two[0])
    touch("touchStart", two[0], aside)  # the palm
    for point in two[1:]:
        touch("touchMove", point, aside)
    touch("touchEnd")
    assert answer(page) == "2" and strokes_in(page) == 1 and page.evaluate("scrollY") == 0

    for kind, x, force in (("mousePressed", 50, 1), ("mouseMoved", 90, 0.2), ("mouseReleased", 90, 0)):
        event = {"type": kind, "x": box["x"] + x, "y": box["y"] + 50, "button": "left", "buttons": 1, "force": force}
        devtools.send("Input.dispatchMouseEvent", event | {"pointerType": "pen", "clickCount": 1})
    settle(page)
    pressed, light = page.evaluate("sketch.strokes[1].map((point) => point.width)")
    assert pressed > light


def test_undo_and_clear(written: Path, opened: Opened) -> None:
    page = opened(written)
    undo, clear = (page.get_by_role("button", name=name, exact=True) for name in ("Undo", "Clear"))
    assert answer(page) == "3" and strokes_in(page) == 0  # the example is nobody's drawing
    draw(page, DRAWN["4"])
    shown = page.locator("#probabilities").inner_text()
    draw(page, [line((0.1, 0.9), (0.9, 0.1))])
    page.keyboard.press("Control+z")
    settle(page)
    assert page.locator("#probabilities").inner_text() == shown and strokes_in(page) == 2
    clear.click()
    assert answer(page) == "?" and clear.get_attribute("aria-disabled") == "true"
    assert {row.split()[1] for row in page.locator("#probabilities li").all_inner_texts()} == {"–"}
    undo.click()
    assert answer(page) == "4"
    for left in (1, 0):
        undo.click()
        assert strokes_in(page) == left
    assert answer(page) == "?" and undo.get_attribute("aria-disabled") == "true"
    page.keyboard.press("Control+z")
    draw(page, DRAWN["7"])
    page.set_viewport_size({"width": 500, "height": 700})  # drawn again at the new size
    page.keyboard.press("Delete")
    assert strokes_in(page) == 0 and answer(page) == "?"
    page.mouse.click(200, 300, button="right")
    assert answer(page) == "?"
    page.mouse.click(200, 300)  # a dot
    assert answer(page) in DIGITS
    rows = ((x, y) for y in np.arange(0, 1.1, 0.06) for x in (-0.1, -0.1, 1.1, 1.1))
    draw(page, [line((0.5, 0.02), *rows)])  # all over is not nothing
    assert strokes_in(page) == 2 and answer(page) in DIGITS


def test_keys_draw_and_the_answer_is_announced(written: Path, opened: Opened) -> None:
    page = opened(written)

    def announced(start: str) -> None:
        page.wait_for_function("(start) => document.getElementById('news').textContent.startsWith(start)", arg=start)

    def press(key: str, times: int = 1) -> None:
        for _ in range(times):
            page.keyboard.press(key)

    press("Tab")
    page.keyboard.press("ArrowUp")
    announced("Pen up, column 15, row 14")
    press("ArrowUp", 7)
    press("ArrowLeft", 5)
    press("Space")
    announced("Pen down, column 10, row 7")
    press("ArrowRight", 10)
    page.keyboard.down("ArrowLeft")  # two arrows make a diagonal
    press("ArrowDown", 6)
    page.keyboard.up("ArrowLeft")
    press("ArrowDown", 10)
    press("Space")
    assert answer(page) == "7" and strokes_in(page) == 1
    assert page.evaluate("Math.round(28 * pen.x)") == 14 - 5 + 10 - 1 - 6
    announced("It reads 7, ")
    press("ArrowDown", 30)
    assert strokes_in(page) == 1 and page.evaluate("[pen.y, scrollY]") == [1, 0]
    page.keyboard.press("Escape")
    announced("Nothing is drawn.")


def test_controls_have_names_and_a_visible_focus(written: Path, opened: Opened) -> None:
    page = opened(written)
    assert page.locator("html").get_attribute("lang") == "en" and page.title() == "Draw a digit"
    for role, name in (("heading", "Draw a digit"), ("heading", "What the network reads"), ("list", "Probabilities")):
        assert page.get_by_role(role, name=name, exact=True).count() == 1
    assert page.get_by_role("img", name="as the network sees it").count() == 1
    assert page.get_by_role("listitem").count() == 10
    assert page.get_by_role("status").count() == 1
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    paper = next(node for node in tree if node.get("role", {}).get("value") == "application")
    assert "Space puts it down" in paper["description"]["value"]
    for role, name in (("application", "Drawing area"), ("button", "Undo"), ("button", "Clear")):
        page.keyboard.press("Tab")
        control = page.get_by_role(role, name=name, exact=True)
        assert control.evaluate("(e) => e === document.activeElement && getComputedStyle(e).outlineStyle") == "solid"


CONTRASTS = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = (colour) => numbers(colour).slice(0, 3)
    .map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const groundOf = (e) => (numbers(getComputedStyle(e).backgroundColor)[3] === 0 ? groundOf(e.parentElement)
    : getComputedStyle(e).backgroundColor);
  return [...document.querySelectorAll("body *:not(script, template, noscript, canvas)")]
    .filter((e) => [...e.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
    .map((e) => {
      const [a, b] = [luminance(getComputedStyle(e).color), luminance(groundOf(e))].sort((x, y) => y - x);
      return [e.textContent, (a + 0.05) / (b + 0.05)];
    });
}"""  # WCAG 2.2, contrast of text


def test_light_and_dark_can_be_read(written: Path, opened: Opened) -> None:
    grounds = set()
    for scheme in ("light", "dark"):
        page = opened(written, color_scheme=scheme)
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) > 30 and not [pair for pair in contrasts if pair[1] < 4.5]
        grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert page.evaluate("getComputedStyle(document.querySelector('.bar')).transitionDuration") == "0s"
    assert len(grounds) == 2


@pytest.mark.parametrize("size", [(320, 568), (360, 740), (768, 1024), (1440, 900), (844, 390)])
def test_it_fits_every_screen(size: tuple[int, int], written: Path, opened: Opened) -> None:
    page = opened(written, *size)
    wide, high = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
    assert wide == size[0]
    assert high == size[1] or size[0] == 320  # no scrolling either, but for the smallest
    box = page.locator("#paper").bounding_box()
    assert abs(box["width"] - box["height"]) < 1 and box["width"] >= 200
    for button in page.get_by_role("button").all():
        assert button.bounding_box()["height"] >= 44  # a finger's


def random_weights(*sizes: int) -> Weights:
    rng = np.random.default_rng(0)
    sizes = (784, *sizes)
    return [
        (rng.normal(0, 0.05, pair).astype(np.float32), np.zeros(pair[1], np.float32))
        for pair in itertools.pairwise(sizes)
    ]


def test_the_default_network_is_small_and_soon_ready(opened: Opened, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(render(random_weights(512, 512, 10), class_names=DIGITS, about={}))
    assert path.stat().st_size < 4_000_000
    taken = []
    for _ in range(2):
        page = opened(path)
        taken.append(page.evaluate("performance.getEntriesByName('first prediction')[0].duration"))
        assert answer(page) in DIGITS
    assert min(taken) < 1000, taken  # ms since the page was opened


def test_names_cannot_break_it(opened: Opened, tmp_path: Path) -> None:
    names = ["</script><script>alert(1)</script>", "<!--<script>", "{{page}} & \u2028 Umkleidekabinenschlüsselanhänger"]
    about = {
        "dataset": "<img src=x>",
        "commit": "0123456789abcdef",
        "step": 1876,
        "accuracy": 0.98,
        "config": {"a": names},
    }
    path = tmp_path / "page.html"
    path.write_text(render(random_weights(16, 3), class_names=names, about=about), encoding="utf-8")
    page = opened(path, 320)
    assert page.locator(".name").evaluate_all("(names) => names.map((e) => e.textContent)") == names
    assert answer(page) == "?" and page.evaluate("document.images.length") == 0
    draw(page, DRAWN["1"])
    assert page.locator("#answer").text_content() in names
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    assert json.loads(page.locator("#about").text_content()) == about | {"class_names": names}
    footer = page.locator("footer").inner_text().replace("\N{NO-BREAK SPACE}", " ")
    assert "784-16-3 · accuracy 98.00% · <img src=x> · step 1,876 · commit 0123456789ab\n" in footer


def test_the_policy_forbids_every_request(written: Path, browser: Browser) -> None:
    page = browser.new_page()
    page.goto(written.as_uri())
    blocked = page.evaluate(
        """() => new Promise((done) => {
          const seen = [];
          addEventListener("securitypolicyviolation", (event) => {
            if (seen.push(event.effectiveDirective) === 3) done(seen.sort());
          });
          fetch("https://example.invalid/").catch(() => {});
          new Image().src = "https://example.invalid/picture.png";
          document.body.append(Object.assign(document.createElement("script"), { textContent: "1" }));
        })"""
    )
    assert blocked == ["connect-src", "img-src", "script-src-elem"]
    page.close()


def test_weights_that_do_not_fit_are_refused() -> None:
    (kernel, bias), last = random_weights(16, 10)
    for weights in ([(kernel, bias)], [last], [(kernel, bias), (last[0].T, last[1])], [(kernel * np.nan, bias), last]):
        with pytest.raises(ValueError, match="shapes|finite"):
            render(weights, class_names=DIGITS, about={})

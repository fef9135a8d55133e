"""The page in a real browser, drawn on by pointers and keys: it reads what is drawn, as JAX would."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from browsing import (
    DIGITS,
    DRAWN,
    NEEDS_CHROMIUM,
    Network,
    Opened,
    Strokes,
    answer,
    draw,
    grey_of,
    line,
    settle,
    strokes_in,
)

from mnist_flax.data import datasets, digits

pytestmark = NEEDS_CHROMIUM


def test_all_test_digits_as_jax_reads_them(
    written: Path, network: Network, dataset: datasets.Dataset, opened: Opened
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

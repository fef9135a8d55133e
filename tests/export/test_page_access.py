"""Everybody can use the page, on every screen, and it asks nobody for anything."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from browsing import DIGITS, DRAWN, NEEDS_CHROMIUM, Opened, Weights, answer, draw
from playwright.sync_api import Browser

from mnist_flax.export.html import render


@NEEDS_CHROMIUM
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


@NEEDS_CHROMIUM
def test_light_and_dark_can_be_read(written: Path, opened: Opened) -> None:
    grounds = set()
    for scheme in ("light", "dark"):
        page = opened(written, color_scheme=scheme)
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) > 30 and not [pair for pair in contrasts if pair[1] < 4.5]
        grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert page.evaluate("getComputedStyle(document.querySelector('.bar')).transitionDuration") == "0s"
    assert len(grounds) == 2


@NEEDS_CHROMIUM
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


@NEEDS_CHROMIUM
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


@NEEDS_CHROMIUM
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


@NEEDS_CHROMIUM
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

"""The pictures of the documentation, of a real run: its figures, TensorBoard and the page to draw on in a real browser.

python experiments/benchmarks/pictures.py    # a minute; writes docs/images/*.png; needs the test extra and chromium
"""

import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright
from provenance import RESULTS

from mnist_flax.monitor.tensorboard import write_members

IMAGES = Path(__file__).parents[2] / "docs" / "images"
PORT = 6106
SEVEN = ([(0.28, 0.25), (0.5, 0.24), (0.68, 0.23), (0.6, 0.42), (0.45, 0.8)], [(0.4, 0.42), (0.72, 0.4)])


def command(name: str, *args: object) -> None:
    """Run one of ours."""
    subprocess.run([sys.executable, "-m", f"mnist_flax.{name}", *map(str, args)], check=True)


def keep(picture: bytes, name: str) -> None:
    """Save a picture in few colours: it is to be looked at, not measured."""
    small = Image.open(io.BytesIO(picture)).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    small.save(IMAGES / f"{name}.png", optimize=True)


def draw(page: Page) -> None:
    """Draw a seven with the mouse."""
    box = page.locator("canvas").first.bounding_box()
    assert box
    for stroke in SEVEN:
        points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]
        page.mouse.move(*points[0])
        page.mouse.down()
        for point in points[1:]:
            page.mouse.move(*point, steps=6)
        page.mouse.up()
    page.wait_for_timeout(500)


def show_page(browser: Browser, file: Path) -> None:
    """The page on three widths, light and dark."""
    for name, width, height in (("page-phone", 360, 740), ("page-tablet", 768, 1024), ("page-desktop", 1440, 900)):
        scheme = "dark" if name == "page-tablet" else "light"
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        page.goto(file.as_uri())
        page.wait_for_timeout(3000)  # its example draws itself
        page.keyboard.press("Escape")
        draw(page)
        keep(page.screenshot(), name)


def show_tensorboard(browser: Browser, scratch: Path, logdir: str, tabs: list[str]) -> None:
    """TensorBoard's own pages."""
    line = [sys.executable, "-m", "tensorboard.main", "--logdir", logdir, "--port", str(PORT)]
    with subprocess.Popen(line, cwd=scratch, stderr=subprocess.DEVNULL) as server:
        while True:
            try:
                if urllib.request.urlopen(f"http://localhost:{PORT}/data/runs").read() != b"[]":
                    break
            except OSError:
                time.sleep(0.5)
        for tab in tabs:
            page = browser.new_page(viewport={"width": 1500, "height": 900})
            page.goto(f"http://localhost:{PORT}/?darkMode=false#{tab}")
            page.wait_for_timeout(6000)
            keep(page.screenshot(), f"tensorboard-{tab}")
        server.terminate()


def main() -> None:
    """Train, evaluate, export, and look."""
    IMAGES.mkdir(exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as directory, sync_playwright() as playwright:
        scratch = Path(directory)
        command("train", "--workdir", scratch / "exp1")
        command("evaluate", "--workdir", scratch / "exp1")
        for figure in (scratch / "exp1" / "figures").iterdir():
            keep(figure.read_bytes(), figure.stem)
        command("export", "--workdir", scratch / "exp1", "--format", "html", "--out", scratch / "digits.html")
        study = (RESULTS / "regularization" / "results.jsonl").read_text()
        write_members(scratch / "sweep" / "tensorboard", [json.loads(row) for row in study.splitlines()])
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        show_page(browser, scratch / "digits.html")
        show_tensorboard(browser, scratch, "exp1", ["scalars", "graphs", "images"])
        show_tensorboard(browser, scratch, "sweep", ["hparams"])
        browser.close()


if __name__ == "__main__":
    main()

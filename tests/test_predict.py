"""A picture of a digit is normalised as MNIST's own were, whatever it looks like."""

import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import Command
from PIL import Image
from scipy import ndimage

from mnist_flax import inference, predict
from mnist_flax.data import datasets, digits
from mnist_flax.errors import InputError
from mnist_flax.workdir import run_info


@pytest.fixture(scope="module")
def some(dataset: datasets.Dataset) -> np.ndarray:
    """200 test digits, uint8 [200, 28, 28]."""
    return np.asarray(dataset.read("test[:200]").images)[..., 0]


def apart(one: np.ndarray, other: np.ndarray) -> float:
    """Mean difference of two pictures, of 255; a centre of mass between two pixels may be rounded either way."""
    shifts = [np.roll(one.astype(float), (y, x), (0, 1)) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    return min(np.abs(shifted - other).mean() for shifted in shifts)


def test_mnist_itself_is_left_almost_alone(some: np.ndarray) -> None:
    differences = [apart(digits.as_mnist(image), image) for image in some]
    assert np.quantile(differences, 0.99) < 1  # the faintest tenth is taken for paper; one digit has a lone faint speck


def placed(image: np.ndarray, scale: int, invert: bool, ground: int = 230) -> np.ndarray:
    """A digit drawn `scale` times as large, in a corner of a larger sheet."""
    ink = np.kron(image, np.ones((scale, scale))) / 255
    sheet = np.zeros((30 * scale + 170, 29 * scale + 60))
    sheet[150 : 150 + 28 * scale, 8 : 8 + 28 * scale] = ink
    return np.round(ground * (1 - 0.9 * sheet) if invert else 20 + 200 * sheet).astype(np.uint8)


@pytest.mark.parametrize(("scale", "invert"), [(4, True), (10, True), (10, False)])
def test_size_place_and_colour_do_not_matter(scale: int, invert: bool, some: np.ndarray) -> None:
    for image in some[:40]:
        made = digits.as_mnist(placed(image, scale, invert))
        assert apart(made, digits.as_mnist(image)) < 3
        rows, columns = (np.flatnonzero(made.any(axis=axis)) for axis in (1, 0))
        assert max(np.ptp(rows), np.ptp(columns)) + 1 in (20, 19)  # the box of 20
        centre = ndimage.center_of_mass(made.astype(float))  # an independent oracle
        assert np.abs(np.subtract(centre, 14)).max() <= 0.75


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_kinds_of_pictures(some: np.ndarray) -> None:
    sheet = placed(some[0], 10, invert=True)
    grey, want = Image.fromarray(sheet), digits.read(encoded(Image.fromarray(sheet)))
    ink = Image.fromarray(255 - sheet)
    black, white = (Image.new("L", grey.size, level) for level in (0, 255))
    strong = ink.point(lambda level: max(0, min(255, (level - 30) * 2)))
    kinds = {
        "jpeg": encoded(grey.convert("RGB"), "JPEG", quality=90),
        "colour": encoded(Image.merge("RGB", (grey, grey, Image.new("L", grey.size, 230)))),
        "palette": encoded(grey.convert("P")),
        "sixteen bits": encoded(Image.fromarray(sheet.astype(np.uint16) * 257)),
        "black on nothing": encoded(Image.merge("LA", (black, strong))),
        "white on nothing": encoded(Image.merge("LA", (white, strong))),
        "turned, says EXIF": encoded(turned := grey.rotate(90, expand=True), "JPEG", exif=exif(turned, 6)),
    }
    for kind, content in kinds.items():
        assert apart(digits.read(content), want) < (9 if "nothing" in kind else 3), kind


def exif(image: Image.Image, orientation: int) -> Image.Exif:
    tags = image.getexif()
    tags[0x0112] = orientation
    return tags


BAD = {
    "empty.png": (b"", "is empty"),
    "text.png": (b"hello", "is not a PNG or JPEG picture"),
    "cut.png": (encoded(Image.effect_noise((99, 99), 50))[:300], "is damaged"),
    "blank.png": (encoded(Image.new("L", (30, 30), 99)), "shows nothing"),
    "faint.png": (encoded(Image.fromarray(np.full((9, 9), 9, np.uint8) + np.eye(9, dtype=np.uint8))), "shows nothing"),
    "clear.png": (encoded(Image.new("RGBA", (30, 30), (1, 2, 3, 0))), "shows nothing"),
    "moving.png": (
        encoded(Image.new("L", (9, 9), 0), save_all=True, append_images=[Image.new("L", (9, 9), 9)]),
        r"is animated \(2 frames\)",
    ),
    "huge.png": (encoded(Image.new("1", (9000, 9000))), r"is huge \(9000 x 9000 pixels\)"),
    "larger.png": (encoded(Image.new("1", (9500, 9500))), r"is huge \(9500 x 9500 pixels\)"),  # of which Pillow warns
    "picture.gif": (encoded(Image.new("L", (9, 9)), "GIF"), "is not a PNG or JPEG picture"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_digit_is_named(name: str, tmp_path: Path) -> None:
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name} {message}") as caught:
        digits.read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_what_is_too_large_is_not_read(finished: Path, tmp_path: Path, command: Command) -> None:
    """Nor is a device that never ends, or a standard input that does not."""
    (tmp_path / "large.png").touch()
    os.truncate(tmp_path / "large.png", 2**40)  # takes no space
    for path in (tmp_path / "large.png", Path("/dev/zero")):
        with pytest.raises(InputError, match=f"{path} is larger than 512 MiB; give a PNG or JPEG picture"):
            digits.read(path)
    with open("/dev/zero") as zeros:
        result = command("predict", "--workdir", finished, "-", stdin=zeros)
    assert result.returncode == 2 and "warning: - is larger than 512 MiB" in result.stderr


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none.png cannot be read"):
        digits.read(tmp_path / "none.png")
    with pytest.raises(InputError, match="cannot be read"):
        digits.read(tmp_path)


def test_the_command(finished: Path, command: Command, some: np.ndarray, tmp_path: Path) -> None:
    for index in range(2):
        Image.fromarray(placed(some[index], 10, invert=True)).save(tmp_path / f"{index}.png")
    (tmp_path / "empty.png").touch()
    files = [tmp_path / name for name in ("0.png", "empty.png", "1.png")]
    words = command("predict", "--workdir", finished, *files)
    assert words.returncode == 2
    first, second = words.stdout.splitlines()
    assert first.startswith(f"{files[0]}: ") and second.startswith(f"{files[2]}: ") and ", then " in second
    warning, error = words.stderr.splitlines()
    assert "empty.png is empty" in warning and error == "error: 1 of 3 files have no answer"

    line = [sys.executable, "-m", "mnist_flax.predict", "--workdir", str(finished), "--step", "26", "--json", "-"]
    piped = subprocess.run(line, input=files[0].read_bytes(), capture_output=True, check=True)
    answer = json.loads(piped.stdout)
    assert first == (
        f"{files[0]}: {answer['label']} ({answer['probability']:.1%}), "
        f"then {answer['runner_up']['label']} ({answer['runner_up']['probability']:.1%})"
    )
    assert abs(sum(answer["probabilities"].values()) - 1) < 1e-9
    ordered = sorted(answer["probabilities"], key=answer["probabilities"].__getitem__)
    assert ordered[-1] == answer["label"] and ordered[-2] == answer["runner_up"]["label"]


def test_a_name_cannot_forge_a_line(finished: Path, command: Command, some: np.ndarray, tmp_path: Path) -> None:
    name = tmp_path / "a\n1.png: 7 (99.9%)\x1b[2J.png"
    Image.fromarray(placed(some[0], 10, invert=True)).save(name)
    (tmp_path / "b\x1b]0;title\x07\n.png").touch()
    result = command("predict", "--workdir", finished, *tmp_path.iterdir())
    assert result.returncode == 2 and result.stdout.count("\n") == 1 and result.stderr.count("\n") == 2
    assert (
        r"/a\n1.png: 7 (99.9%)\x1b[2J.png: " in result.stdout and r"b\x1b]0;title\x07\n.png is empty" in result.stderr
    )
    assert "\x1b" not in result.stdout + result.stderr


def test_pictures_for_emnist_have_rows_for_columns_too(
    finished: Path, some: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(placed(some[0], 10, invert=True)).save(tmp_path / "0.png")
    mnist, seen = run_info.read(finished), []
    emnist = dataclasses.replace(mnist, config=dataclasses.replace(mnist.config, dataset="emnist/digits"))
    monkeypatch.setattr(inference, "load_network", lambda *_: (0, None, None))
    monkeypatch.setattr(inference, "logits_of", lambda _model, _variables, images, _size: seen.append(images) or images)
    monkeypatch.setattr(predict, "_answer", lambda *_: None)
    for run in (mnist, emnist):
        monkeypatch.setattr(run_info, "read", lambda _, run=run: run)
        predict.run(predict.Args(files=(str(tmp_path / "0.png"),), workdir=finished), signals=None)
    np.testing.assert_array_equal(seen[1][0], seen[0][0].T)


def test_a_phones_picture_of_several_images_is_its_first(tmp_path: Path, dataset: datasets.Dataset) -> None:
    digit = Image.fromarray(dataset.read("test[:1]").images[0, ..., 0]).resize((112, 112))
    digit.save(tmp_path / "photo.jpg", format="MPO", save_all=True, append_images=[Image.new("L", (112, 112))])
    digit.save(tmp_path / "alone.jpg")
    np.testing.assert_array_equal(digits.read(tmp_path / "photo.jpg"), digits.read(tmp_path / "alone.jpg"))

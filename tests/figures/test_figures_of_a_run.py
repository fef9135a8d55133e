"""What a figure shows is what was measured; and every one is looked at by a person before it is called done."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.calibration import calibration_curve

from mnist_flax.data import datasets
from mnist_flax.figures import charts, pictures

NAMES = [str(digit) for digit in range(10)]


@pytest.fixture(scope="module")
def scored(dataset: datasets.Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, labels and made-up logits, mostly right, of 600 digits."""
    split = dataset.read("test[:600]")
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(600, 10)) + 3 * rng.random((600, 1)) * np.eye(10)[split.labels]
    return np.asarray(split.images), np.asarray(split.labels), logits


Gallery = list[tuple[str, np.ndarray, list[str], int]]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Gallery:
    """What is handed to `gallery`."""
    calls: Gallery = []
    monkeypatch.setattr(pictures, "gallery", lambda *args: calls.append(args))
    return calls


def test_digits(dataset: datasets.Dataset, shown: Gallery) -> None:
    images, labels = dataset.read("train[:20]")
    pictures.digits(images, labels, NAMES)
    _, drawn, captions, columns = shown[0]
    np.testing.assert_array_equal(drawn, images[:9])
    assert captions == [str(label) for label in labels[:9]] and columns == 3


@pytest.mark.parametrize("channels", [1, 3])
def test_gallery(channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, 28, 28, channels), np.uint8)
    captions = ["a", "b\nc", "", "d", "a long, long caption", "f", "g"]
    made = np.asarray(pictures.gallery("title", images, captions, 3).convert("RGB"))
    for index, image in enumerate(images):
        top, left = 60 + index // 3 * 214, 20 + index % 3 * 160
        tile = made[top : top + 140, left : left + 140]
        np.testing.assert_array_equal(tile, np.broadcast_to(image, (28, 28, 3)).repeat(5, axis=0).repeat(5, axis=1))
        caption = made[top + 140 : top + 200, left : left + 140]
        assert (caption.min() < 100) == (index != 2)
        assert (made[top : top + 200, left + 140 + 10 - 1] == 255).all()  # nothing reaches into the next column
    assert made[:60].min() < 100 and made.shape == (60 + 3 * 214, 20 + 3 * 160, 3)


def test_mosaic() -> None:
    images = np.random.default_rng(0).random((7, 5, 4))
    made = pictures.mosaic(images, 3, 9.0)
    assert made.shape == (3 * (5 + 3), 3 * (4 + 3))
    for index, picture in enumerate(images):
        row, column = divmod(index, 3)
        np.testing.assert_array_equal(made[8 * row : 8 * row + 5, 7 * column : 7 * column + 4], picture)
        made[8 * row : 8 * row + 5, 7 * column : 7 * column + 4] = 9
    assert (made == 9).all()


def test_curves() -> None:
    history = []
    for epoch in (1, 2, 3):
        for split, loss in (("train", 1 / epoch), ("eval", 2 / epoch)):
            history.append({"epoch": epoch, "split": split, "loss": loss, "accuracy": 1 - loss / 4})
    left, right = charts.curves(history, "test").axes
    assert [line.get_label() for line in left.lines] == ["train (dropout on, mean over the epoch)", "test (after it)"]
    for axis, name, factor in ((left, "loss", 1), (right, "accuracy", 100)):
        for line, split in zip(axis.lines, ("train", "eval"), strict=True):
            want = [factor * row[name] for row in history if row["split"] == split]
            np.testing.assert_allclose(line.get_data(), ([1, 2, 3], want))


def test_confusion() -> None:
    matrix = np.arange(9).reshape(3, 3)
    figure = charts.confusion(matrix, ["a", "b", "c"])
    shown = {(round(t.get_position()[1]), round(t.get_position()[0])): int(t.get_text()) for t in figure.axes[0].texts}
    assert shown == {(row, column): matrix[row, column] for row, column in np.argwhere(matrix)}
    assert (figure.axes[0].get_ylabel(), figure.axes[0].get_xlabel()) == ("truth", "prediction")


def test_mistakes(scored: tuple[np.ndarray, np.ndarray, np.ndarray], shown: Gallery) -> None:
    images, labels, logits = scored
    pictures.mistakes(images, labels, logits, NAMES)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    wrong = [n for n in range(600) if probabilities[n].argmax() != labels[n]]
    worst = sorted(wrong, key=lambda n: -probabilities[n].max())[:25]
    title, drawn, captions, _ = shown[0]
    assert title == f"Most confidently wrong: 25 of {len(wrong)} mistakes among 600"
    assert captions == [
        f"{probabilities[n].argmax()} ({probabilities[n].max():.1%})\ntruth: {labels[n]}" for n in worst
    ]
    np.testing.assert_array_equal(drawn, images[worst])
    pictures.mistakes(images[worst[:2]], labels[worst[:2]], logits[worst[:2]], NAMES)
    assert len(shown[1][2]) == 2
    assert pictures.mistakes(images, logits.argmax(axis=1), logits, NAMES) is None


def test_reliability(scored: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    _, labels, logits = scored
    figure = charts.reliability(logits, labels, bins=10)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    confidence, hit = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    share, mean = calibration_curve(hit, confidence, n_bins=10)
    counts = np.histogram(confidence, bins=10, range=(0, 1))[0]
    x, y = figure.axes[0].lines[1].get_data()
    enough = counts[counts > 0] >= 10
    np.testing.assert_allclose(x, mean[enough])
    np.testing.assert_allclose(y, share[enough])
    assert [bar.get_height() for bar in figure.axes[1].patches] == list(counts)


def test_weights() -> None:
    kernel = np.random.default_rng(0).normal(size=(784, 70)) * np.linspace(1, 2, 70)
    figure = charts.weights(kernel.T.reshape(-1, 28, 28, 1))
    shown = np.asarray(figure.axes[0].images[0].get_array())
    order = sorted(range(70), key=lambda unit: -np.linalg.norm(kernel[:, unit]))
    for index, unit in enumerate(order[:64]):
        row, column = divmod(index, 8)
        picture = shown[31 * row : 31 * row + 28, 31 * column : 31 * column + 28]
        np.testing.assert_array_equal(picture, kernel[:, unit].reshape(28, 28))
    assert shown.shape == (8 * 31, 8 * 31)


def test_files(scored: tuple[np.ndarray, np.ndarray, np.ndarray], tmp_path: Path) -> None:
    images, labels, logits = scored
    kernel = np.random.default_rng(0).normal(size=(784, 70))
    charts.evaluation_figures(tmp_path / "figures", images, labels, logits, kernel.T.reshape(-1, 28, 28, 1), NAMES)
    found = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert found == ["confusion.png", "mistakes.png", "reliability.png", "weights.png"]
    for path in (tmp_path / "figures").iterdir():
        with Image.open(path) as picture:
            assert picture.width > 400 and len(picture.convert("L").getcolors() or [0, 0, 0]) > 2
    drawn = kernel.T.reshape(-1, 28, 28, 1)
    charts.evaluation_figures(tmp_path / "figures", images, logits.argmax(axis=1), logits, drawn, NAMES)
    assert not (tmp_path / "figures" / "mistakes.png").exists()  # an empty picture, or an older one

"""What a figure shows is what was measured; and every one is looked at by a person before it is called done."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from sklearn.calibration import calibration_curve

from mnist_flax import data, run_figures

NAMES = [str(digit) for digit in range(10)]


@pytest.fixture(scope="module")
def scored(dataset: data.Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, labels and made-up logits, mostly right, of 600 digits."""
    split = dataset.read("test[:600]")
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(600, 10)) + 3 * rng.random((600, 1)) * np.eye(10)[split.labels]
    return np.asarray(split.images), np.asarray(split.labels), logits


def titles(figure: Figure) -> list[str]:
    return [axis.get_title() for axis in figure.axes if axis.get_title()]


def test_confusion() -> None:
    matrix = np.arange(9).reshape(3, 3)
    figure = run_figures.confusion(matrix, ["a", "b", "c"])
    shown = {(round(t.get_position()[1]), round(t.get_position()[0])): int(t.get_text()) for t in figure.axes[0].texts}
    assert shown == {(row, column): matrix[row, column] for row, column in np.argwhere(matrix)}
    assert (figure.axes[0].get_ylabel(), figure.axes[0].get_xlabel()) == ("truth", "prediction")


def test_mistakes(scored: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    images, labels, logits = scored
    figure = run_figures.mistakes(images, labels, logits, NAMES)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    wrong = [n for n in range(600) if probabilities[n].argmax() != labels[n]]
    worst = sorted(wrong, key=lambda n: -probabilities[n].max())[:25]
    want = [f"{probabilities[n].argmax()} ({probabilities[n].max():.1%})\ntruth: {labels[n]}" for n in worst]
    assert titles(figure) == want
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), images[worst[0], :, :, 0])
    few = run_figures.mistakes(images[worst[:2]], labels[worst[:2]], logits[worst[:2]], NAMES)
    assert len(titles(few)) == 2


def test_reliability(scored: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    _, labels, logits = scored
    figure = run_figures.reliability(logits, labels, bins=10)
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
    figure = run_figures.weights(kernel, (28, 28, 1))
    pictures = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    assert len(pictures) == 64
    largest = np.argmax(np.linalg.norm(kernel, axis=0))
    np.testing.assert_array_equal(pictures[0], kernel[:, largest].reshape(28, 28))


def test_files(scored: tuple[np.ndarray, np.ndarray, np.ndarray], tmp_path: Path) -> None:
    images, labels, logits = scored
    kernel = np.random.default_rng(0).normal(size=(784, 70))
    run_figures.evaluation_figures(tmp_path / "figures", images, labels, logits, kernel, NAMES)
    found = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert found == ["confusion.png", "mistakes.png", "reliability.png", "weights.png"]
    for path in (tmp_path / "figures").iterdir():
        with Image.open(path) as picture:
            assert picture.width > 400 and len(picture.convert("L").getcolors() or [0, 0, 0]) > 2

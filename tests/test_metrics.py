"""The evaluation_report against scikit-learn, and against a definition written out; sums that add up in any order."""

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss, recall_score

from mnist_flax.metrics import Metrics, add, calibration, evaluation_report, totals_of, wilson_interval


@pytest.fixture(scope="module", params=[(1, 10), (203, 10), (5000, 4)])
def example(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    n, classes = request.param
    rng = np.random.default_rng(n)
    labels = rng.integers(classes, size=n)
    logits = rng.normal(size=(n, classes)).astype(np.float32) * 3
    logits[np.arange(n), labels] += 3 * rng.random(n)
    return logits, labels


def test_report_equals_scikit_learn(example: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = example
    classes = np.arange(logits.shape[1])
    probabilities = np.exp(logits.astype(np.float64))
    probabilities /= probabilities.sum(1, keepdims=True)
    predicted = logits.argmax(1)
    got = evaluation_report(logits, labels)
    assert got["examples"] == len(labels)
    assert got["correct"] == (predicted == labels).sum()
    assert got["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert got["cross_entropy"] == pytest.approx(log_loss(labels, probabilities, labels=classes))
    assert got["confusion_matrix"] == confusion_matrix(labels, predicted, labels=classes).tolist()
    present = np.unique(labels)
    recall = recall_score(labels, predicted, labels=present, average=None)
    assert [got["per_class_accuracy"][c] for c in present] == pytest.approx(recall.tolist())
    assert all(got["per_class_accuracy"][c] is None for c in set(classes) - set(present))


def test_calibration_error_equals_its_definition(example: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = example
    error, n = 0.0, len(labels)
    for b in range(15):
        members = []
        for row, label in zip(logits.astype(np.float64), labels, strict=True):
            p = np.exp(row) / np.exp(row).sum()
            if b / 15 < p.max() <= (b + 1) / 15:
                members.append((float(p.argmax() == label), p.max()))
        if members:
            hits, confidences = np.mean(members, axis=0)
            error += len(members) / n * abs(hits - confidences)
    assert evaluation_report(logits, labels)["expected_calibration_error"] == pytest.approx(error)


@pytest.mark.parametrize(("correct", "examples"), [(0, 1), (1, 1), (0, 7), (7, 7), (3, 11), (9_753, 10_000)])
def test_the_interval_of_an_accuracy_equals_scipys(correct: int, examples: int) -> None:
    want = binomtest(correct, examples).proportion_ci(0.95, method="wilson")
    assert wilson_interval(correct, examples) == pytest.approx((want.low, want.high), abs=1e-12)


def test_a_guess_among_many_classes_is_in_the_lowest_bin() -> None:
    logits = np.zeros((6, 20), np.float32)  # a confidence of 1/20, below 1/15
    logits[3:, 7] = np.log(19 / 9)  # and of 1/10, in the second bin
    found = calibration(logits, np.full(6, 7))
    assert found.examples.tolist() == [3, 3, *[0] * 13] and found.correct.tolist() == [0, 3, *[0] * 13]
    np.testing.assert_allclose(found.confidence[:2], [3 / 20, 3 / 10], rtol=1e-6)


def test_huge_logits_stay_finite() -> None:
    got = evaluation_report(np.array([[1e4, 0.0], [0.0, 1e4]], np.float32), np.array([0, 0]))
    assert got["cross_entropy"] == pytest.approx(5000)


def test_metrics_merge_in_any_order() -> None:
    rng = np.random.default_rng(0)
    leaves = [rng.random(40, np.float32) for _ in range(5)]
    whole = totals_of(Metrics(*leaves))
    for _ in range(10):
        parts = np.split(rng.permutation(40), [rng.integers(1, 39)])
        halves = [totals_of(Metrics(*(leaf[part] for leaf in leaves))) for part in parts]
        both = add(add(None, halves[0]), halves[1])
        assert both.keys() == whole.keys()
        for name in whole:
            np.testing.assert_allclose(both[name], whole[name], rtol=1e-14)

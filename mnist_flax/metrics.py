"""Metrics as sums and counts: they add up over batches, devices and calls, and are divided once, on the host.

    totals = totals_of(metrics)              # one step's or K steps' Metrics -> plain floats
    summary(add(totals, more_totals))        # {"loss": ..., "cross_entropy": ..., "accuracy": ..., ...}

`evaluation_report` computes what `evaluate` tells from logits, with numpy in float64.
"""

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from jax import Array


class Metrics(NamedTuple):
    """What one step counted, over its real examples only. Leaves are [] in a step, [K] after a scan."""

    cross_entropy: "Array"  # float32, summed over the examples, in nats
    l2_penalty: "Array"  # float32, the penalty times the number of examples
    correct: "Array"  # int32, examples whose largest logit is the label's
    examples: "Array"  # int32
    gradient_norm: "Array"  # float32, of the cross-entropy's gradient, at every tenth step from the first; else 0


Totals = dict[str, float]


def totals_of(metrics: Metrics) -> Totals:
    """Sum over steps, in float64, so that neither the number of calls nor their order changes the result's digits."""
    return {name: float(np.asarray(leaf).sum(dtype=np.float64)) for name, leaf in metrics._asdict().items()}


def add(a: Totals | None, b: Totals) -> Totals:
    """The totals of both; None is nothing yet."""
    return b if a is None else {name: a[name] + b[name] for name in b}


def summary(totals: Totals) -> dict[str, Any]:
    """Means over the examples: loss (with penalty), cross_entropy, l2_penalty, accuracy; and examples, a count."""
    n = totals["examples"]
    cross_entropy, penalty = totals["cross_entropy"] / n, totals["l2_penalty"] / n
    return {
        "loss": cross_entropy + penalty,
        "cross_entropy": cross_entropy,
        "l2_penalty": penalty,
        "accuracy": totals["correct"] / n,
        "examples": int(n),
    }


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithms of the probabilities, float64 [N, C], of logits [N, C]."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities, float64 [N, C], of logits [N, C]."""
    return np.exp(log_softmax(logits))


def log_mean_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithms of the mean of P networks' probabilities, float64 [N, C], of their logits [P, N, C].

    An ensemble's prediction: Lakshminarayanan et al., NeurIPS 2017, section 2.4. It stands where logits do, since
    `softmax` of it is the mean.
    """
    return np.logaddexp.reduce([log_softmax(each) for each in logits]) - math.log(len(logits))


def wilson_interval(correct: int, examples: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy, from 0 to 1 (Wilson, JASA 1927): how far another test set may put it."""
    z, share = 1.959963984540054, correct / examples  # z: the normal distribution's 97.5 % point
    middle = (share + z * z / (2 * examples)) / (1 + z * z / examples)
    half = z * math.sqrt(share * (1 - share) / examples + (z / (2 * examples)) ** 2) / (1 + z * z / examples)
    return max(middle - half, 0.0), min(middle + half, 1.0)


class Calibration(NamedTuple):
    """Predictions in bins of confidence, all of one width, as in Guo et al., ICML 2017, section 2: [bins] each."""

    examples: np.ndarray  # int
    confidence: np.ndarray  # summed over the examples
    correct: np.ndarray  # how many of them are right

    def error(self) -> float:
        """The expected calibration error: equation 3."""
        return float(np.abs(self.correct - self.confidence).sum() / self.examples.sum())


def calibration(logits: np.ndarray, labels: np.ndarray, bins: int = 15) -> Calibration:
    """Bin the predictions of logits [N, C] by their confidence; bins are open below and closed above."""
    probabilities = softmax(logits)
    confidence, hit = probabilities.max(axis=1), logits.argmax(axis=1) == labels
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return Calibration(*(np.bincount(which, weights, bins) for weights in (None, confidence, hit)))


def evaluation_report(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """All that an evaluation reports, from the logits [N, C] and labels [N] of every example.

    It has examples, correct, accuracy, accuracy_interval (95 %), cross_entropy (nats), expected_calibration_error (15
    bins), per_class_accuracy [C] (None for a class without examples) and confusion_matrix [C, C] (rows: truth).
    """
    predicted, classes = logits.argmax(axis=1), logits.shape[1]
    hit = predicted == labels
    confusion = np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)
    per_class = [int(row[c]) / int(row.sum()) if row.sum() else None for c, row in enumerate(confusion)]
    return {
        "examples": len(labels),
        "correct": int(hit.sum()),
        "accuracy": float(hit.mean()),
        "accuracy_interval": list(wilson_interval(int(hit.sum()), len(labels))),
        "cross_entropy": float(-log_softmax(logits)[np.arange(len(labels)), labels].mean()),
        "expected_calibration_error": calibration(logits, labels).error(),
        "per_class_accuracy": per_class,
        "confusion_matrix": confusion.tolist(),
    }

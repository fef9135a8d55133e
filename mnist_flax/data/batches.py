"""Batches as arrays of indices: every example once, padding marked by -1."""

from typing import NamedTuple

import numpy as np


class Split(NamedTuple):
    """Images and their labels, in one order."""

    images: np.ndarray  # uint8 [N, H, W, C]
    labels: np.ndarray  # int32 [N]


def epoch_batches(num_examples: int, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """Every index once, in an order that (seed, epoch) alone decide: int32 [S, B], the last batch padded with -1."""
    return _in_batches(np.random.default_rng((seed, epoch)).permutation(num_examples), batch_size)


def eval_batches(num_examples: int, batch_size: int) -> np.ndarray:
    """Every index once, in order: int32 [S, B], the last batch padded with -1."""
    return _in_batches(np.arange(num_examples), min(batch_size, num_examples))


def _in_batches(indices: np.ndarray, batch_size: int) -> np.ndarray:
    steps = -(-len(indices) // batch_size)
    padded = np.full(steps * batch_size, -1, np.int32)
    padded[: len(indices)] = indices
    return padded.reshape(steps, batch_size)

"""The tests of a comparison, against statsmodels, scipy and the formulas of the textbooks."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar as their_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from mnist_flax.compare.statistics import holm, mcnemar, paired_t
from mnist_flax.metrics import wilson_interval

COUNTS = st.lists(st.integers(0, 30), min_size=4, max_size=4).filter(any)


@given(st.integers(1, 10_000), st.data())
def test_the_interval_of_an_accuracy_is_wilsons(examples: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, examples))
    want = scipy.stats.binomtest(correct, examples).proportion_ci(0.95, method="wilson")
    assert wilson_interval(correct, examples) == pytest.approx([want.low, want.high], abs=1e-12)
    theirs = proportion_confint(correct, examples, method="wilson")
    assert wilson_interval(correct, examples) == pytest.approx(theirs, abs=1e-12)


@given(COUNTS, st.randoms(use_true_random=False))
def test_mcnemar_is_that_of_statsmodels(counts: list[int], random) -> None:
    pairs = [pair for pair, n in zip([(1, 1), (1, 0), (0, 1), (0, 0)], counts, strict=True) for _ in range(n)]
    random.shuffle(pairs)
    first, second = np.array(pairs, bool).T
    found, want = mcnemar(first, second), their_mcnemar(np.reshape(counts, (2, 2)), exact=True)
    assert (found.only_first, found.only_second) == (counts[1], counts[2])
    if counts[1] + counts[2]:
        assert found.p == pytest.approx(want.pvalue, rel=1e-9)
    else:
        assert found.p == 1  # the same answers: statsmodels divides by 0
    assert mcnemar(second, first).p == pytest.approx(found.p)


SEEDS = st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 2000)), min_size=2, max_size=12)


@given(SEEDS)
def test_paired_t_is_the_formula_of_the_textbook(counts: list[tuple[int, int]]) -> None:
    first, second = map(list, zip(*counts, strict=True))
    found = paired_t(first, second, examples=2000)
    points = [100 * (a - b) / 2000 for a, b in counts]
    n, mean = len(points), math.fsum(points) / len(points)
    assert found.seeds == n and found.difference == pytest.approx(mean, abs=1e-12)
    if len({a - b for a, b in counts}) == 1:
        assert found[2:] == (None, None, None)
        return
    error = math.sqrt(sum((point - mean) ** 2 for point in points) / (n - 1) / n)
    half = scipy.stats.t.ppf(0.975, n - 1) * error
    assert (found.low, found.high) == pytest.approx((mean - half, mean + half), rel=1e-6, abs=1e-9)
    assert found.p == pytest.approx(2 * scipy.stats.t.sf(abs(mean) / error, n - 1), rel=1e-6)


def test_equal_differences_give_no_p_value() -> None:
    assert paired_t([1800, 1810, 1790], [1780, 1790, 1770], 2000) == (3, 1.0, None, None, None)
    assert paired_t([5, 7], [5, 7], 10) == (2, 0.0, None, None, None)


def test_holm_is_that_of_statsmodels() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 2, 5, 30):  # each collects statsmodels' garbage
        p_values = (rng.uniform(size=count) ** 4).round(rng.integers(1, 5))  # small ones, and ties
        np.testing.assert_allclose(holm(p_values.tolist()), multipletests(p_values, method="holm")[1], atol=1e-15)
    assert holm([]) == []

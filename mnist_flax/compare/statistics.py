"""Test whether networks differ: McNemar's exact test, the paired t test, and Holm's correction for several tests.

mcnemar(hits_a, hits_b).p  # hits: bool [N], which examples a network gets right
paired_t([9760, 9755, 9771], [9748, 9750, 9752], examples=10_000)  # correct answers, seed by seed
"""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np


class McNemar(NamedTuple):
    """McNemar's exact test of two networks on the same examples (Psychometrika, 1947)."""

    only_first: int  # examples that the first network alone gets right
    only_second: int
    p: float  # two-sided


def mcnemar(first: "np.ndarray", second: "np.ndarray") -> McNemar:
    """Test two networks by the examples, bool [N], that each gets right.

    If both are equally good, an example that one of them alone gets right is as likely to be either's.
    """
    from scipy.stats import binomtest  # late, as it takes a moment to import

    one, other = int((first & ~second).sum()), int((second & ~first).sum())
    p = float(binomtest(one, one + other).pvalue) if one + other else 1.0
    return McNemar(one, other, p)


class PairedT(NamedTuple):
    """A paired t test of two configurations over shared seeds; differences are first minus second, in points."""

    seeds: int
    difference: float  # mean
    low: float | None  # the 95 % interval of the mean; None where all differences are equal
    high: float | None
    p: float | None  # two-sided


def paired_t(first: list[int], second: list[int], examples: int) -> PairedT:
    """Test the numbers of correct answers among `examples`, of two seeds or more; each place is one seed.

    Where all differences are equal, their variance is 0, and Student's t has no value.
    """
    from scipy.stats import ttest_rel

    point = examples / 100
    differences = [a - b for a, b in zip(first, second, strict=True)]
    mean = sum(differences) / len(differences) / point
    if len({*differences}) == 1:
        return PairedT(len(first), mean, None, None, None)
    result = ttest_rel(first, second)
    low, high = result.confidence_interval(0.95)
    return PairedT(len(first), mean, float(low) / point, float(high) / point, float(result.pvalue))


def holm(p_values: list[float]) -> list[float]:
    """Adjust p values for their number, in their order (Holm, Scandinavian Journal of Statistics, 1979).

    To reject where the adjusted value is at most 0.05 errs in any of the tests with a probability of at most 0.05.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted

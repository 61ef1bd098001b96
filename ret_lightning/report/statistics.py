"""Statistics of a report: confidence intervals over seeds, and paired tests over queries.

The randomisation test is implemented here because `scipy.stats.permutation_test` is slow for many queries; see resampling.py
in `experiments/benchmarks/`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
RESAMPLES = 9999

# Relative tolerance for sums of the same numbers in another order.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Summary:
    """A metric over seeds.

    Attributes:
        count: number of seeds.
        mean: over seeds.
        deviation: sample standard deviation, with n - 1; None for one seed.
        interval: (low, high) 95 % confidence interval of the mean; None for one seed.
    """

    count: int
    mean: float
    deviation: float | None
    interval: tuple[float, float] | None


def summarise(values: Sequence[float]) -> Summary:
    """Compute mean, standard deviation and Student's t interval of the mean, with n - 1 degrees of freedom (Student, 1908).

    The interval assumes normally distributed seeds. With two or three seeds it is wide, and it may exceed [0, 1].

    Args:
        values: one per seed.
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Summary(len(values), mean, None, None)
    deviation = statistics.stdev(values)
    half = _t_quantile(len(values) - 1) * deviation / math.sqrt(len(values))
    return Summary(len(values), mean, deviation, (mean - half, mean + half))


def welch_interval(first: Sequence[float], second: Sequence[float]) -> tuple[float, float] | None:
    """Compute the 95 % confidence interval of mean(first) - mean(second) by Welch's t (Welch, 1947).

    Args:
        first: one value per seed.
        second: one value per seed; its variance may differ from that of `first`.

    Returns:
        (low, high); None if either side has one value. Without any variance both ends are the difference of the means.
    """
    if min(len(first), len(second)) < 2:
        return None
    a, b = (statistics.variance(values) / len(values) for values in (first, second))
    difference = statistics.fmean(first) - statistics.fmean(second)
    if a + b == 0:
        return difference, difference
    freedom = (a + b) ** 2 / (a**2 / (len(first) - 1) + b**2 / (len(second) - 1))
    half = _t_quantile(freedom) * math.sqrt(a + b)
    return difference - half, difference + half


def randomisation_test(differences: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> float:
    """Compute the two-sided p value of a paired randomisation test.

    The null hypothesis is that the two systems are exchangeable, so that the sign of each query's difference is random. The p
    value is the share of sign assignments whose absolute sum is at least the observed one, the observed assignment included
    (Fisher, 1935; Smucker, Allan and Carterette, CIKM 2007; Phipson and Smyth, 2010, for the inclusion).

    The number of positive signs among equal absolute differences is binomial, so each resample takes one random number per
    distinct absolute difference.

    Args:
        differences: (N,), one per query. For a mean over subsets, each is divided by the size of its subset first.
        seed: of numpy's default generator.
        resamples: R; the smallest possible p value is 1 / (R + 1).
    """
    sizes, copies = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    if not len(sizes):
        return 1.0
    generator = np.random.default_rng(seed)
    positive = generator.binomial(copies, 0.5, size=(resamples, len(sizes)))
    sums = np.abs((2 * positive - copies) @ sizes)
    observed = abs(float(differences.sum()))
    extreme = int((sums >= observed - ROUNDING * float(copies @ sizes)).sum())
    return (extreme + 1) / (resamples + 1)


def holm_correction(values: Sequence[float]) -> list[float]:
    """Adjust p values for multiple comparisons, controlling the family-wise error rate (Holm, 1979).

    Args:
        values: p values of one table.

    Returns:
        The adjusted p values, in the same order.
    """
    order = sorted(range(len(values)), key=lambda i: values[i])
    corrected = [0.0] * len(values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - rank) * values[i]))
        corrected[i] = largest
    return corrected


def _t_quantile(freedom: float) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + LEVEL) / 2, freedom))

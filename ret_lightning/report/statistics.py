"""How sure a mean over seeds is, and whether two variants differ: over seeds, and over queries.

Not `scipy.stats.permutation_test`, which is over 1,000 times slower on 5,000 differences of hits (benchmark: resampling.py).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
RESAMPLES = 9999

# Sums of the same numbers in another order differ in the last digits.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Summary:
    """Of one number a seed.

    Attributes:
        count: of seeds.
        mean: over them.
        deviation: the sample's, with n - 1; None for one seed.
        interval: of the mean, 95 %, (low, high); None for one seed, which says nothing of how seeds differ.
    """

    count: int
    mean: float
    deviation: float | None
    interval: tuple[float, float] | None


def summarise(values: Sequence[float]) -> Summary:
    """Mean, deviation, and Student's t interval of the mean with n - 1 degrees of freedom (Student, 1908).

    The interval takes the seeds for a sample from normally distributed ones; with two or three seeds it is as wide as that
    little knowledge warrants, and may leave [0, 1].
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Summary(len(values), mean, None, None)
    deviation = statistics.stdev(values)
    half = _t_quantile(len(values) - 1) * deviation / math.sqrt(len(values))
    return Summary(len(values), mean, deviation, (mean - half, mean + half))


def difference_over_seeds(first: Sequence[float], second: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of mean(first) - mean(second) by Welch's t (Welch, 1947), which lets the two vary differently.

    None where either has one value only. Without any variance it is the difference itself, twice.
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
    """Two-sided p of the paired randomisation test of the hypothesis that the sum of the differences is 0.

    Were the two systems exchangeable, each query's difference would as well have the other sign. The p value is the share of
    random signs whose sum is as far from 0 as the observed one, the observed signs counted along, so it is never 0 (Fisher,
    1935; Smucker, Allan and Carterette, CIKM 2007, who recommend it for retrieval; Phipson and Smyth, 2010, for the count).

    How often each distinct size of a difference keeps its sign is binomial, so a resample draws a few numbers and not one
    for each query.

    Args:
        differences: (N,), one a query; for a mean over subsets each is divided by its subset's size first.
        seed: of numpy's default generator.
        resamples: R; the least p is 1 / (R + 1).
    """
    sizes, copies = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    if not len(sizes):
        return 1.0
    generator = np.random.default_rng(seed)
    kept = generator.binomial(copies, 0.5, size=(resamples, len(sizes)))
    sums = np.abs((2 * kept - copies) @ sizes)
    observed = abs(float(differences.sum()))
    as_far = int((sums >= observed - ROUNDING * float(copies @ sizes)).sum())
    return (as_far + 1) / (resamples + 1)


def holm(values: Sequence[float]) -> list[float]:
    """P values corrected for their number, so that the chance of even one false alarm stays below each (Holm, 1979)."""
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

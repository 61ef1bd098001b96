"""Statistics against SciPy and against the enumeration of all sign patterns."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from ret_lightning.report.statistics import holm_correction, randomisation_test, summarise, welch_interval

A = [0.61, 0.64, 0.58, 0.66]
B = [0.55, 0.59, 0.50]


def test_interval_equals_scipy_t_interval() -> None:
    summary = summarise(A)
    low, high = stats.t.interval(0.95, len(A) - 1, loc=np.mean(A), scale=stats.sem(A))
    assert summary.interval == pytest.approx((low, high), abs=1e-12)
    assert summary.deviation == pytest.approx(np.std(A, ddof=1), abs=1e-12)
    assert (summary.count, summary.mean) == (4, pytest.approx(np.mean(A)))


def test_one_seed_has_no_interval() -> None:
    summary = summarise([0.5])
    assert (summary.count, summary.mean, summary.deviation, summary.interval) == (1, 0.5, None, None)
    assert welch_interval([0.5], B) is None
    assert welch_interval(A, [0.5]) is None


def test_welch_interval_equals_scipy() -> None:
    expected = stats.ttest_ind(A, B, equal_var=False).confidence_interval(0.95)
    assert welch_interval(A, B) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert welch_interval([0.5, 0.5], [0.25, 0.25]) == (0.25, 0.25)


@pytest.mark.parametrize("seed", range(4))
def test_randomisation_test_approximates_enumeration(seed: int) -> None:
    differences = np.random.default_rng(seed).choice([-1, -1 / 3, 0, 0, 1 / 3, 2 / 3, 1], size=12) / 12
    signs = np.array(list(itertools.product([-1, 1], repeat=12)))
    exact = np.mean(np.abs(signs @ differences) >= abs(differences.sum()) - 1e-12)
    assert randomisation_test(differences) == pytest.approx(exact, abs=0.02)


def test_randomisation_test_approximates_scipy() -> None:
    random = np.random.default_rng(3)
    first, second = random.random(40), random.random(40) - 0.12
    expected = stats.permutation_test(
        (first - second,), np.sum, permutation_type="samples", n_resamples=9999, rng=np.random.default_rng(1)
    )
    assert randomisation_test(first - second) == pytest.approx(expected.pvalue, abs=0.01)


def test_randomisation_test_limits_and_symmetry() -> None:
    assert randomisation_test(np.zeros(5)) == 1.0
    assert randomisation_test(np.full(300, 0.5)) == 1 / 10_000
    assert randomisation_test(np.array([0.5])) == 1.0  # the other sign is as far from 0
    differences = np.random.default_rng(0).normal(size=50)
    assert randomisation_test(differences) == randomisation_test(differences)
    assert randomisation_test(differences) == randomisation_test(-differences)


def test_p_values_are_calibrated_under_null() -> None:
    random = np.random.default_rng(5)
    found = [randomisation_test(random.choice([-1, 0, 1], size=80), seed=i, resamples=499) for i in range(400)]
    assert 0.01 <= np.mean(np.array(found) <= 0.05) <= 0.08


def test_holm_correction() -> None:
    # Sorted 0.01, 0.02, 0.03, 0.04, times 4, 3, 2, 1, then the running maximum.
    assert holm_correction([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm_correction([0.5, 0.9]) == [1.0, 1.0]
    assert holm_correction([]) == []

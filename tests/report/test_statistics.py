"""Against SciPy, and against all sign patterns written out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from ret_lightning.report.statistics import difference_over_seeds, holm, randomisation_test, summarise

A = [0.61, 0.64, 0.58, 0.66]
B = [0.55, 0.59, 0.50]


def test_the_interval_is_students() -> None:
    summary = summarise(A)
    low, high = stats.t.interval(0.95, len(A) - 1, loc=np.mean(A), scale=stats.sem(A))
    assert summary.interval == pytest.approx((low, high), abs=1e-12)
    assert summary.deviation == pytest.approx(np.std(A, ddof=1), abs=1e-12)
    assert (summary.count, summary.mean) == (4, pytest.approx(np.mean(A)))


def test_one_seed_claims_nothing() -> None:
    summary = summarise([0.5])
    assert (summary.count, summary.mean, summary.deviation, summary.interval) == (1, 0.5, None, None)
    assert difference_over_seeds([0.5], B) is None
    assert difference_over_seeds(A, [0.5]) is None


def test_the_difference_over_seeds_is_welchs() -> None:
    expected = stats.ttest_ind(A, B, equal_var=False).confidence_interval(0.95)
    assert difference_over_seeds(A, B) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert difference_over_seeds([0.5, 0.5], [0.25, 0.25]) == (0.25, 0.25)


@pytest.mark.parametrize("seed", range(4))
def test_the_randomisation_test_comes_near_to_all_sign_patterns(seed: int) -> None:
    differences = np.random.default_rng(seed).choice([-1, -1 / 3, 0, 0, 1 / 3, 2 / 3, 1], size=12) / 12
    signs = np.array(list(itertools.product([-1, 1], repeat=12)))
    exact = np.mean(np.abs(signs @ differences) >= abs(differences.sum()) - 1e-12)
    assert randomisation_test(differences) == pytest.approx(exact, abs=0.02)


def test_the_randomisation_test_is_scipys() -> None:
    random = np.random.default_rng(3)
    first, second = random.random(40), random.random(40) - 0.12
    expected = stats.permutation_test(
        (first - second,), np.sum, permutation_type="samples", n_resamples=9999, rng=np.random.default_rng(1)
    )
    assert randomisation_test(first - second) == pytest.approx(expected.pvalue, abs=0.01)


def test_the_randomisation_test_at_its_ends() -> None:
    assert randomisation_test(np.zeros(5)) == 1.0
    assert randomisation_test(np.full(300, 0.5)) == 1 / 10_000
    assert randomisation_test(np.array([0.5])) == 1.0  # the other sign is as far from 0
    differences = np.random.default_rng(0).normal(size=50)
    assert randomisation_test(differences) == randomisation_test(differences)
    assert randomisation_test(differences) == randomisation_test(-differences)


def test_under_the_hypothesis_small_values_are_as_rare_as_they_say() -> None:
    random = np.random.default_rng(5)
    found = [randomisation_test(random.choice([-1, 0, 1], size=80), seed=i, resamples=499) for i in range(400)]
    assert 0.01 <= np.mean(np.array(found) <= 0.05) <= 0.08


def test_holm() -> None:
    # By hand: sorted 0.01, 0.02, 0.03, 0.04, times 4, 3, 2, 1, and never below the one before.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from ret_lightning.retrieval import bootstrap_intervals
from ret_lightning.retrieval.metrics.bootstrap import resample_means


def interval(values: np.ndarray, **options) -> tuple[float, float]:
    return bootstrap_intervals({"x": {"m": torch.from_numpy(values)}}, {}, **options)["x/m"]


@pytest.mark.parametrize("level", [0.5, 0.95])
@pytest.mark.parametrize(
    ("values", "resolution"),
    [(np.repeat([0.0, 1.0], [140, 60]), 1 / 200), (np.random.default_rng(0).beta(0.4, 1.0, size=200), 0.0)],
    ids=["hits", "graded"],
)
def test_intervals_match_scipy(values: np.ndarray, resolution: float, level: float) -> None:
    """SciPy samples queries by index; the ends agree up to the sampling error and the weight of one query."""
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=10_000, method="percentile", confidence_level=level, rng=1
    ).confidence_interval
    error = values.std() / np.sqrt(len(values))
    expected = pytest.approx((theirs.low, theirs.high), abs=0.1 * error + 1.01 * resolution)
    assert interval(values, resamples=10_000, level=level) == expected


def test_resamples_have_expected_mean_and_deviation() -> None:
    values = np.random.default_rng(0).exponential(size=300)
    means = resample_means(values, 20_000, 0)
    assert means.shape == (20_000,)
    assert means.mean() == pytest.approx(values.mean(), abs=4 * values.std() / np.sqrt(300 * 20_000))
    assert means.std() == pytest.approx(values.std() / np.sqrt(300), rel=0.03)


@pytest.mark.parametrize("size", [100, 200])
def test_intervals_have_nominal_coverage(size: int) -> None:
    """About 95 % of the intervals of 300 samples contain the true mean."""
    random = np.random.default_rng(1)
    for sample, truth in (
        (lambda: (random.random(size) < 0.3).astype(float), 0.3),
        (lambda: random.beta(2, 3, size), 0.4),
    ):
        ends = [interval(sample(), resamples=400, seed=seed) for seed in range(300)]
        share = np.mean([low <= truth <= high for low, high in ends])
        # Four standard deviations of 300 trials are 0.05; the percentile bootstrap is slightly narrow at 100 queries.
        assert 0.9 < share < 0.995


def test_interval_of_mean_keeps_subset_weights() -> None:
    """Its variance is that of independent subsets: the sum of s^2 / n divided by the squared number of subsets."""
    random = np.random.default_rng(2)
    sizes = {"small": 50, "middle": 200, "large": 1000}
    values = {name: torch.from_numpy(random.beta(1, 2, n)) for name, n in sizes.items()}
    means = {"m": dict.fromkeys(sizes, "m"), "of two": {"small": "m", "large": "n"}}
    by_query = {name: {"m": own, "n": own / 2} for name, own in values.items()}
    found = bootstrap_intervals(by_query, means, resamples=5000)
    for parts, key in ((list(values.values()), "mean/m"), ([values["small"], values["large"] / 2], "mean/of two")):
        center = np.mean([float(part.mean()) for part in parts])
        deviation = np.sqrt(sum(float(part.var(correction=0)) / len(part) for part in parts)) / len(parts)
        expected = (center - 1.96 * deviation, center + 1.96 * deviation)
        assert found[key] == pytest.approx(expected, abs=0.2 * deviation)


def test_equal_subsets_are_sampled_independently() -> None:
    values = torch.from_numpy(np.random.default_rng(3).random(200))
    by_query = {"one": {"m": values}, "other": {"m": values}}
    found = bootstrap_intervals(by_query, {"m": {"one": "m", "other": "m"}})
    width = {key: high - low for key, (low, high) in found.items()}
    assert width["mean/m"] == pytest.approx(width["one/m"] / np.sqrt(2), rel=0.1)


def test_interval_depends_only_on_values_names_and_seed() -> None:
    random = np.random.default_rng(4)
    values, others = torch.from_numpy(random.random(100)), torch.from_numpy(random.random(300))
    alone = bootstrap_intervals({"x": {"m": values}}, {})
    together = bootstrap_intervals(
        {"y": {"n": others}, "x": {"n": others[:100], "m": values}}, {"n": {"y": "n", "x": "n"}}
    )
    assert together["x/m"] == alone["x/m"]
    assert set(together) == {"y/n", "x/n", "x/m", "mean/n"}
    assert bootstrap_intervals({"x": {"m": values}}, {}, seed=1) != alone


def test_uncounted_queries_are_not_sampled() -> None:
    values = torch.tensor([0.0, 1.0, 1.0, 0.0] * 25)
    with_uncounted = torch.cat([values, torch.full((900,), torch.nan)])
    uncounted = torch.full((3,), torch.nan)
    found = bootstrap_intervals({"x": {"m": with_uncounted, "nothing": uncounted}}, {})
    assert found == bootstrap_intervals({"x": {"m": values}}, {})


def test_blocks_do_not_change_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(5).random(100)
    whole = resample_means(values, 37, 0)
    monkeypatch.setattr("ret_lightning.retrieval.metrics.bootstrap.BLOCK_ELEMENTS", 1000)
    np.testing.assert_allclose(resample_means(values, 37, 0), whole, rtol=1e-15)


def test_equal_values_have_empty_interval() -> None:
    assert interval(np.ones(10)) == (1.0, 1.0)
    assert interval(np.zeros(1)) == (0.0, 0.0)

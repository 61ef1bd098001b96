"""Bootstrap confidence intervals of metrics.

The percentile bootstrap over queries (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3): queries
are sampled with replacement, as many as there are, and averaged; the interval holds the middle 95 % of the means of many
such resamples. It covers the variance due to the choice of queries, not due to the training seed.

Shapes: Nq queries, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

RESAMPLES = 2000
LEVEL = 0.95

# Counts per block: 32 MiB.
BLOCK_ELEMENTS = 1 << 22


def bootstrap_intervals(
    by_query: Mapping[str, Mapping[str, Tensor]],
    means: Mapping[str, Mapping[str, str]],
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Compute the interval of every metric of every subset, and of means over subsets.

    The resamples of a mean over subsets are the means of the resamples of its subsets. Queries are sampled within each
    subset, which keeps its size and weight. The resamples of a metric depend only on the seed, its values, its name and the
    name of its subset, so an interval does not depend on what else is evaluated.

    Args:
        by_query: subset to metric to (Nq,) values, NaN for queries that the metric does not count, as returned by
            `evaluate_ranking`.
        means: name of a mean to its subsets, each with the metric to average.
        resamples: number of resamples R.
        level: confidence level, in (0, 1).
        seed: random seed.

    Returns:
        `<subset>/<metric>` and `mean/<name>` to (low, high). Metrics that count no query are omitted.
    """
    sampled: dict[str, np.ndarray] = {}
    for subset, metrics in by_query.items():
        for metric, values in metrics.items():
            counted = values[~values.isnan()].numpy()
            if len(counted):
                key = f"{subset}/{metric}"
                sampled[key] = resample_means(counted, resamples, (seed, *key.encode()))
    for name, parts in means.items():
        sampled[f"mean/{name}"] = np.mean([sampled[f"{subset}/{metric}"] for subset, metric in parts.items()], axis=0)
    quantiles = [(1 - level) / 2, (1 + level) / 2]
    return {key: tuple(np.quantile(samples, quantiles).tolist()) for key, samples in sampled.items()}


def resample_means(values: np.ndarray, resamples: int, seed: int | tuple[int, ...]) -> np.ndarray:
    """Return the means of resamples of the values, each of the size of `values` and sampled with replacement.

    Only the count of each distinct value in a resample matters, and these counts are multinomial. A hit rate has two
    distinct values and a reciprocal rank at 10 has eleven, so sampling counts is much cheaper than sampling queries.

    Args:
        values: (N,) array, N at least 1.
        resamples: number of resamples R.
        seed: seed of the default generator of NumPy.

    Returns:
        (R,) float64.
    """
    distinct, copies = np.unique(values, return_counts=True)
    generator = np.random.default_rng(seed)
    block = max(1, BLOCK_ELEMENTS // len(distinct))
    sizes = [min(block, resamples - start) for start in range(0, resamples, block)]
    counts = (generator.multinomial(len(values), copies / len(values), size=size) for size in sizes)
    return np.concatenate([part @ distinct for part in counts]) / len(values)

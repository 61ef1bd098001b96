"""Benchmark of bootstrap intervals and randomisation tests over queries: ours against SciPy.

    python experiments/benchmarks/resampling.py
    python experiments/benchmarks/resampling.py queries=1000 repeats=5

The values are hits (0 or 1), reciprocal ranks at 10, and distinct numbers. Both use the numbers of resamples of an evaluation
(2,000) and a report (9,999), SciPy in batches of 500, and run alternately in one process.
"""

from __future__ import annotations

import sys
from functools import partial

import numpy as np
import torch
from measure import compare
from scipy import stats

from ret_lightning.report.statistics import RESAMPLES as SIGNS
from ret_lightning.report.statistics import randomisation_test
from ret_lightning.retrieval.metrics.bootstrap import LEVEL, RESAMPLES, resample_means

OPTIONS = {"queries": "5000", "repeats": "3"}
BATCH = 500


def main() -> None:
    options = {**OPTIONS, **dict(argument.split("=", 1) for argument in sys.argv[1:])}
    queries, random = int(options["queries"]), np.random.default_rng(0)
    ranks = random.geometric(0.2, size=(2, queries))
    values = {
        "hits": (random.random((2, queries)) < 0.4).astype(float),
        "reciprocal ranks": np.where(ranks <= 10, 1 / ranks, 0.0),
        "all different": random.random((2, queries)),
    }
    print(f"{options} numpy {np.__version__}")
    print("| values | what | SciPy, s | ours, s | speed | SciPy, MiB | ours, MiB |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for name, (one, other) in values.items():
        rows = {
            "interval": (partial(scipy_interval, one), partial(own_interval, one)),
            "randomisation test": (partial(scipy_test, one - other), partial(randomisation_test, one - other)),
        }
        for what, (theirs, ours) in rows.items():
            found = compare({"scipy": theirs, "ours": ours}, int(options["repeats"]), torch.device("cpu"))
            seconds = [found[side].seconds for side in ("scipy", "ours")]
            speed = seconds[0] / seconds[1]
            peaks = " | ".join(f"{found[side].peak / 2**20:.0f}" for side in ("scipy", "ours"))
            print(
                f"| {name} | {what} | {seconds[0]:.3f} | {seconds[1]:.4f} | {speed:.{0 if speed >= 10 else 2}f} | {peaks} |",
                flush=True,
            )


def scipy_interval(values: np.ndarray) -> object:
    return stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, batch=BATCH, method="percentile", confidence_level=LEVEL, rng=0
    ).confidence_interval


def own_interval(values: np.ndarray) -> np.ndarray:
    return np.quantile(resample_means(values, RESAMPLES, 0), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])


def scipy_test(differences: np.ndarray) -> float:
    return stats.permutation_test(
        (differences,), np.sum, permutation_type="samples", n_resamples=SIGNS, batch=BATCH, rng=0
    ).pvalue


if __name__ == "__main__":
    main()

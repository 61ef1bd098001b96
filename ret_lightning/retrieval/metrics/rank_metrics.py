"""Recall@K of three kinds, MRR@K and nDCG@K of queries, as functions of the hits of N queries.

    recall@K             1 if any of the first K passages has one of the query's passage ids, else 0 (as M2KR has it;
                         trec_eval's `success`)
    pseudo_recall@K      1 if any of the first K passage texts contains one of the query's answers, else 0 (as M2KR has it);
                         the mean is over the queries that have answers, which is ours: the paper does not say
    fractional_recall@K  the share of the query's P right passages that are among the first K (trec_eval's `recall`)
    mrr@K                1 / rank of the first right passage, 0 if it is not among the first K
    ndcg@K               DCG / ideal DCG, where DCG is the sum of 1 / log2(rank + 1) over the right passages among the first K,
                         and the ideal is that of a ranking that begins with the query's P right passages (Järvelin and
                         Kekäläinen, 2002, with gains of 0 and 1)

Right passages that are missing from the pool count as not found, and P counts them, as in trec_eval.

Shapes: N queries, C ranked passages each. `hits` (N, C) bool, best passage first; `relevant` (N,) int64 is P. A function
returns (N,) float64 in [0, 1]; a query without right passages has 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import comb

import torch
from torch import Tensor

from ret_lightning.errors import ConfigError


def recall(hits: Tensor, k: int, relevant: Tensor | None = None) -> Tensor:
    """recall@K, and of the hits of answers pseudo_recall@K."""
    return hits[:, :k].any(dim=1).double()


def fractional_recall(hits: Tensor, k: int, relevant: Tensor) -> Tensor:
    """fractional_recall@K."""
    return hits[:, :k].sum(dim=1) / relevant.clamp(min=1).double()


def mrr(hits: Tensor, k: int, relevant: Tensor | None = None) -> Tensor:
    """mrr@K."""
    return (hits[:, :k] / torch.arange(1, k + 1, device=hits.device, dtype=torch.float64)).amax(dim=1)


def ndcg(hits: Tensor, k: int, relevant: Tensor) -> Tensor:
    """ndcg@K."""
    discounts = 1 / torch.arange(2, hits.shape[1] + 2, device=hits.device, dtype=torch.float64).log2()
    return (hits * discounts).cumsum(dim=1)[:, k - 1] / discounts.cumsum(dim=0)[relevant.clamp(1, k) - 1]


METRICS = {"recall": recall, "pseudo_recall": recall, "fractional_recall": fractional_recall, "mrr": mrr, "ndcg": ndcg}


def rank_metrics(name: str, ks: Iterable[int], hits: Tensor, relevant: Tensor | None = None) -> dict[str, Tensor]:
    """A metric of every query at each K: `{"recall@1": (N,) float64, ...}`.

    Args:
        name: of a metric, see `METRICS`.
        ks: the values of K.
        hits: (N, C) bool, C at least the largest K.
        relevant: (N,) int64, at least as many as there are hits; only `fractional_recall` and `ndcg` need it.

    Raises:
        ConfigError: if `ks` is empty or one of them is below 1.
        ValueError: if shapes or dtypes do not fit, or a query has more hits than right passages.
    """
    ks = sorted(set(ks))
    check_cutoffs(name, ks)
    if hits.dtype != torch.bool or hits.dim() != 2 or hits.shape[1] < ks[-1]:
        raise ValueError(
            f"{name}@{ks[-1]} needs bool hits of shape (N, {ks[-1]} or more), got {hits.dtype} of shape {tuple(hits.shape)}"
        )
    if relevant is not None and (relevant.shape != hits.shape[:1] or (hits.sum(dim=1) > relevant).any()):
        raise ValueError(f"{name}@K: relevant must be ({len(hits)},) and no query may have more hits than that")
    return {f"{name}@{k}": METRICS[name](hits, k, relevant) for k in ks}


def check_cutoffs(name: str, ks: Sequence[int]) -> None:
    """Raise ConfigError unless there is a K and each is at least 1."""
    if not ks or min(ks) < 1:
        raise ConfigError(
            f"{name}@K: K must be one or more numbers of at least 1, got {list(ks)}",
            code="metric-k-too-small",
            found=tuple(ks),
        )


def query_means(by_query: Mapping[str, Tensor]) -> dict[str, float]:
    """The mean of each metric over the queries that it counts, those not NaN; a metric that counts none is left out."""
    counted = {name: values[~values.isnan()] for name, values in by_query.items()}
    return {name: float(values.mean()) for name, values in counted.items() if len(values)}


def random_recall(pool_size: int, positives_in_pool: Sequence[int], k: int) -> float:
    """The expected recall@K of a random ranking: the mean of 1 - C(N - P, K) / C(N, K) over queries.

    Args:
        pool_size: N.
        positives_in_pool: P of each query, `count_positives`.
        k: K, at least 1; at most N count.

    Raises:
        ValueError: without queries, or if a P is not in [0, N] or K is below 1.
    """
    if not positives_in_pool or k < 1 or not 0 <= min(positives_in_pool) <= max(positives_in_pool) <= pool_size:
        raise ValueError(
            f"random_recall: needs k of at least 1 and queries with 0 to {pool_size} positives, got k={k} and "
            f"{len(positives_in_pool)} queries with {sorted(set(positives_in_pool))}"
        )
    k = min(k, pool_size)
    every = comb(pool_size, k)  # whole numbers up to one division per number of positives
    hits = (
        count * ((every - comb(pool_size - p, k)) / every) for p, count in sorted(Counter(positives_in_pool).items())
    )
    return sum(hits) / len(positives_in_pool)

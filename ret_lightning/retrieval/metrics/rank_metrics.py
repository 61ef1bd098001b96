"""Recall@K, pseudo-recall@K, fractional recall@K, MRR@K and nDCG@K of N queries, computed from their hits.

    recall@K             1 if any of the first K passages is a positive, else 0 (as in M2KR; `success` in trec_eval)
    pseudo_recall@K      1 if any of the first K passage texts contains an answer, else 0 (as in M2KR); averaged over the
                         queries with answers, which the paper does not specify
    fractional_recall@K  fraction of the P relevant passages that are among the first K (`recall` in trec_eval)
    mrr@K                1 / rank of the first relevant passage, 0 if it is not among the first K
    ndcg@K               DCG / ideal DCG. DCG is the sum of 1 / log2(rank + 1) over the relevant passages among the first K,
                         the ideal DCG that of a ranking that starts with the P relevant passages (Järvelin and
                         Kekäläinen, 2002, with binary gains)

Relevant passages that are missing from the candidate pool count as not found and are included in P, as in trec_eval.

Shapes: N queries, C ranked passages each. `hits` is (N, C) bool, best passage first; `relevant` is (N,) int64 and holds P.
The functions return (N,) float64 in [0, 1]; queries without relevant passages have the value 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import comb

import torch
from torch import Tensor

from ret_lightning.errors import ConfigError


def recall(hits: Tensor, k: int, relevant: Tensor | None = None) -> Tensor:
    """Compute recall@K; with the hits of answers, pseudo_recall@K."""
    return hits[:, :k].any(dim=1).double()


def fractional_recall(hits: Tensor, k: int, relevant: Tensor) -> Tensor:
    """Compute fractional_recall@K."""
    return hits[:, :k].sum(dim=1) / relevant.clamp(min=1).double()


def mrr(hits: Tensor, k: int, relevant: Tensor | None = None) -> Tensor:
    """Compute mrr@K."""
    return (hits[:, :k] / torch.arange(1, k + 1, device=hits.device, dtype=torch.float64)).amax(dim=1)


def ndcg(hits: Tensor, k: int, relevant: Tensor) -> Tensor:
    """Compute ndcg@K."""
    discounts = 1 / torch.arange(2, hits.shape[1] + 2, device=hits.device, dtype=torch.float64).log2()
    return (hits * discounts).cumsum(dim=1)[:, k - 1] / discounts.cumsum(dim=0)[relevant.clamp(1, k) - 1]


METRICS: dict[str, Callable[..., Tensor]] = {
    "recall": recall,
    "pseudo_recall": recall,
    "fractional_recall": fractional_recall,
    "mrr": mrr,
    "ndcg": ndcg,
}


def rank_metrics(name: str, ks: Iterable[int], hits: Tensor, relevant: Tensor | None = None) -> dict[str, Tensor]:
    """Compute a metric of every query at each K.

    Args:
        name: name of the metric, a key of `METRICS`.
        ks: values of K.
        hits: (N, C) bool, True where a ranked passage is relevant, best passage first; C at least the largest K.
        relevant: (N,) int64 number of relevant passages per query, at least the number of hits; required by
            `fractional_recall` and `ndcg`.

    Returns:
        `{"recall@1": (N,) float64, ...}` in ascending order of K.

    Raises:
        ConfigError: if `ks` is empty or one of them is below 1.
        ValueError: if shapes or dtypes do not match, or a query has more hits than relevant passages.
    """
    ks = sorted(set(ks))
    check_cutoffs(name, ks)
    if hits.dtype != torch.bool or hits.dim() != 2 or hits.shape[1] < ks[-1]:
        raise ValueError(
            f"{name}@{ks[-1]}: expected bool hits of shape (N, {ks[-1]} or more), got {hits.dtype} {tuple(hits.shape)}"
        )
    if relevant is not None and (relevant.shape != hits.shape[:1] or (hits.sum(dim=1) > relevant).any()):
        raise ValueError(
            f"{name}@K: expected relevant of shape ({len(hits)},), at least the number of hits of each query"
        )
    return {f"{name}@{k}": METRICS[name](hits, k, relevant) for k in ks}


def check_cutoffs(name: str, ks: Sequence[int]) -> None:
    """Raise ConfigError if `ks` is empty or one of them is below 1."""
    if not ks or min(ks) < 1:
        raise ConfigError(
            f"{name}@K: expected one or more values of K of at least 1, got {list(ks)}",
            code="metric-k-too-small",
            found=tuple(ks),
        )


def query_means(by_query: Mapping[str, Tensor]) -> dict[str, float]:
    """Average each metric over the queries that it counts, those that are not NaN; omit metrics that count none."""
    counted = {name: values[~values.isnan()] for name, values in by_query.items()}
    return {name: float(values.mean()) for name, values in counted.items() if len(values)}


def random_recall(pool_size: int, positives_in_pool: Sequence[int], k: int) -> float:
    """Compute the expected recall@K of a random ranking: the mean of 1 - C(N - P, K) / C(N, K) over queries.

    Args:
        pool_size: number of passages N.
        positives_in_pool: number of positives P in the pool for each query, as returned by `count_positives`.
        k: K, at least 1; values above N are treated as N.

    Raises:
        ValueError: if there are no queries, a P is not in [0, N], or K is below 1.
    """
    if not positives_in_pool or k < 1 or not 0 <= min(positives_in_pool) <= max(positives_in_pool) <= pool_size:
        raise ValueError(
            f"random_recall: expected k of at least 1 and queries with 0 to {pool_size} positives, got k={k} and "
            f"{len(positives_in_pool)} queries with {sorted(set(positives_in_pool))}"
        )
    k = min(k, pool_size)
    every = comb(pool_size, k)  # exact integers until the division
    hits = (
        count * ((every - comb(pool_size - p, k)) / every) for p, count in sorted(Counter(positives_in_pool).items())
    )
    return sum(hits) / len(positives_in_pool)

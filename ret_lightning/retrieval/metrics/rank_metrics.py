"""Three kinds of recall@K, MRR@K and nDCG@K as torchmetrics metrics, and what a random ranking would reach.

Each is a mean over queries of a number in [0, 1]:

    recall@K          1 if any of the first K passages has one of the query's passage ids, else 0 (as M2KR has it)
    pseudo_recall@K   1 if any of the first K passage texts contains one of the query's answers, else 0 (as M2KR has it);
                      the mean is over the queries that have answers, which is ours: the paper does not say
    fractional_recall@K
                      the share of the query's P right passages that are among the first K (trec_eval's `recall`)
    mrr@K             1 / rank of the first right passage, 0 if it is not among the first K
    ndcg@K            DCG / ideal DCG, where DCG is the sum of 1 / log2(rank + 1) over the right passages among the first K,
                      and the ideal is that of a ranking with the query's P right passages in front (Järvelin and
                      Kekäläinen, 2002, with gains of 0 and 1)

Recall@K is thus a hit rate, trec_eval's `success`: one positive of two in the first K counts 1, and 0.5 in fractional recall@K.
The two are equal where every query has one positive. Positives that are missing from the pool count as not found: a query
without any other is a miss in all metrics, and P counts them too, as it does in trec_eval.

Two steps: `positive_hits` or `answer_hits` (relevance.py) says of each ranked passage whether it is right; a metric counts
queries, over batches and ranks. Rows, not batches, are counted: each query has its place in the state, so that one which a
sampler repeats, in this process or in another, counts once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import comb

import torch
from torch import Tensor
from torchmetrics import Metric

from ret_lightning.errors import ConfigError


class QueryMetric(Metric):
    """A number for each query at each K, averaged over queries. The state has a row for each query of the subset.

    `compute()` returns {"recall@1": ..., "recall@5": ...}, ascending in K, Python floats; {} if no query was counted. It
    merges the ranks, as torchmetrics does wherever torch.distributed is in use; under NCCL the metric must be on a GPU.

    Args:
        ks: the values of K.
        queries: how many queries there are on all ranks together; `update` knows them by their positions, from 0.
        kwargs: of `torchmetrics.Metric`.

    Raises:
        ConfigError: if `ks` is empty or one of them is below 1.
    """

    name: str
    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    values: Tensor  # (queries, number of K) float64, NaN for a query that was not counted yet

    def __init__(self, ks: Iterable[int], queries: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self.ks = sorted(set(ks))
        if not self.ks or self.ks[0] < 1:
            raise ConfigError(
                f"{self.name}@K: K must be one or more numbers of at least 1, got {self.ks}",
                code="metric-k-too-small",
                found=tuple(self.ks),
            )
        nothing = torch.full((queries, len(self.ks)), torch.nan, dtype=torch.float64)
        # One shape on every rank, whatever it was given: torchmetrics cannot gather lists of which one is empty.
        self.add_state("values", nothing, dist_reduce_fx=_first_counted)

    def update(self, queries: Tensor, hits: Tensor) -> None:
        """Adds queries; what a query counted before, in this call or an earlier one, stays.

        Args:
            queries: (N,) int64, the position of each among the queries.
            hits: (N, C) bool, whether each ranked passage is a hit, best passage first; C at least the largest K.

        Raises:
            ValueError: if `hits` has fewer columns than the largest K, or dtypes, lengths or positions do not fit.
        """
        self._check(queries, hits)
        self._store(queries, self._of(hits))

    def by_query(self) -> dict[str, Tensor]:
        """The numbers behind the means, of all ranks together: name to (queries,) float64 on the CPU, NaN where not counted.

        All ranks must call it.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            values = self.values.cpu()
        return {f"{self.name}@{k}": values[:, i].clone() for i, k in enumerate(self.ks)}

    def compute(self) -> dict[str, float]:
        return query_means({f"{self.name}@{k}": self.values[:, i] for i, k in enumerate(self.ks)})

    def _of(self, hits: Tensor) -> Tensor:
        """(N, C) bool -> (N, number of K) float64."""
        raise NotImplementedError

    def _store(self, queries: Tensor, values: Tensor) -> None:
        queries, order = queries.to(self.values.device).sort(stable=True)
        new = self.values[queries, 0].isnan()
        new[1:] &= queries[1:] != queries[:-1]
        self.values[queries[new]] = values.to(self.values.device)[order][new]

    def _check(self, queries: Tensor, hits: Tensor) -> None:
        if hits.dtype != torch.bool or hits.dim() != 2 or hits.shape[1] < self.ks[-1]:
            raise ValueError(
                f"{self.name}@{self.ks[-1]} needs bool hits of shape (N, {self.ks[-1]} or more), "
                f"got {hits.dtype} of shape {tuple(hits.shape)}"
            )
        if queries.dtype != torch.int64 or queries.shape != hits.shape[:1]:
            raise ValueError(
                f"{self.name}@K: queries must be int64 of shape ({len(hits)},), "
                f"got {queries.dtype} of shape {tuple(queries.shape)}"
            )
        if len(queries) and not 0 <= int(queries.min()) <= int(queries.max()) < len(self.values):
            raise ValueError(
                f"{self.name}@K: positions of queries from {int(queries.min())} to {int(queries.max())}, "
                f"where there are {len(self.values)} queries"
            )


class RecallAtK(QueryMetric):
    """Recall@K for several K at once: `update(queries, positive_hits(...))`."""

    name = "recall"

    def _of(self, hits: Tensor) -> Tensor:
        return torch.stack([hits[:, :k].any(dim=1) for k in self.ks], dim=1).double()


class PseudoRecallAtK(RecallAtK):
    """Pseudo recall@K for several K at once: `update(queries[known], answer_hits(...)[known])`, known by `has_answers`.

    `compute()` returns {} if no query has answers, since there is no pseudo recall then.
    """

    name = "pseudo_recall"


class MRRAtK(QueryMetric):
    """The reciprocal rank of the first right passage, for several K at once: `update(queries, positive_hits(...))`."""

    name = "mrr"

    def _of(self, hits: Tensor) -> Tensor:
        ranks = torch.arange(1, hits.shape[1] + 1, device=hits.device, dtype=torch.float64)
        reciprocal = hits / ranks
        return torch.stack([reciprocal[:, :k].amax(dim=1) for k in self.ks], dim=1)


class NormalizedMetric(QueryMetric):
    """A metric that divides by what a query with P right passages can reach."""

    def update(self, queries: Tensor, hits: Tensor, relevant: Tensor) -> None:
        """Adds queries, as the other metrics do.

        Args:
            queries: (N,) int64, the position of each among the queries.
            hits: (N, C) bool, `positive_hits(...)`; C at least the largest K.
            relevant: (N,) int64, P of each query, `count_relevant(...)`.

        Raises:
            ValueError: as the others do, or if a query has more hits than P.
        """
        self._check(queries, hits)
        if relevant.shape != queries.shape or (hits.sum(dim=1) > relevant.to(hits.device)).any():
            raise ValueError(
                f"{self.name}@K: relevant must be ({len(hits)},) and no query may have more hits than that"
            )
        self._store(queries, self._share(hits, relevant.to(hits.device).clamp(min=1)))  # without right passages 0 / 1

    def _share(self, hits: Tensor, relevant: Tensor) -> Tensor:
        """(N, C) bool and (N,) int64, at least 1 -> (N, number of K) float64."""
        raise NotImplementedError


class FractionalRecallAtK(NormalizedMetric):
    """The share of right passages found, for several K at once; a query without right passages counts 0."""

    name = "fractional_recall"

    def _share(self, hits: Tensor, relevant: Tensor) -> Tensor:
        return torch.stack([hits[:, :k].sum(dim=1) / relevant.double() for k in self.ks], dim=1)


class NDCGAtK(NormalizedMetric):
    """nDCG@K with gains of 0 and 1, for several K at once; a query without right passages counts 0."""

    name = "ndcg"

    def _share(self, hits: Tensor, relevant: Tensor) -> Tensor:
        discounts = 1 / torch.arange(2, hits.shape[1] + 2, device=hits.device, dtype=torch.float64).log2()
        gained = (hits * discounts).cumsum(dim=1)
        ideal = discounts.cumsum(dim=0)
        return torch.stack([gained[:, k - 1] / ideal[relevant.clamp(max=k) - 1] for k in self.ks], dim=1)


def query_means(by_query: Mapping[str, Tensor]) -> dict[str, float]:
    """The mean of each metric over the queries that it counts, those not NaN; a metric that counts none is left out."""
    counted = {name: values[~values.isnan()] for name, values in by_query.items()}
    return {name: float(values.mean()) for name, values in counted.items() if len(values)}


def random_recall(pool_size: int, positives_in_pool: Sequence[int], k: int) -> float:
    """The recall@K that a ranking in random order has on average.

    Of N passages, P of them positive, K drawn without replacement miss all positives with the hypergeometric probability
    C(N - P, K) / C(N, K); so a query hits with 1 minus that. Exact: whole numbers up to one division a query.

    Args:
        pool_size: N.
        positives_in_pool: P of each query, `count_positives`.
        k: K, at least 1; at most N count.

    Returns:
        The mean over queries, in [0, 1].

    Raises:
        ValueError: without queries, or if a P is not in [0, N] or K is below 1.
    """
    if not positives_in_pool or k < 1:
        raise ValueError(f"random_recall: needs queries and k of at least 1, got {len(positives_in_pool)} and k={k}")
    drawn = min(k, pool_size)
    every = comb(pool_size, drawn)
    total = 0.0
    for positives, queries in sorted(Counter(positives_in_pool).items()):
        if not 0 <= positives <= pool_size:
            raise ValueError(f"random_recall: {positives} positives in a pool of {pool_size}")
        total += queries * ((every - comb(pool_size - positives, drawn)) / every)
    return total / len(positives_in_pool)


def _first_counted(stacked: Tensor) -> Tensor:
    """(ranks, queries, number of K) -> (queries, number of K): of each query what the first rank says that counted it."""
    first = (~stacked.isnan()).int().argmax(dim=0, keepdim=True)
    return stacked.gather(0, first)[0]

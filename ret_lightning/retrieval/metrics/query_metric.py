"""Metrics of rankings as torchmetrics metrics, accumulated over batches and ranks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from ret_lightning.retrieval.metrics.rank_metrics import check_cutoffs, query_means, rank_metrics


class QueryMetric(Metric):
    """A torchmetrics metric that averages a metric of `METRICS` over the queries of all ranks.

    The state has one row per query of the subset, so that a query that a sampler repeats, on the same or another rank, is
    counted once. `compute` returns `{"recall@1": ..., "recall@5": ...}` in ascending order of K; `{}` if no query was
    counted.

    Args:
        name: name of the metric, a key of `METRICS`.
        ks: values of K.
        queries: number of queries on all ranks; `update` identifies them by their positions, from 0.
        kwargs: keyword arguments of `torchmetrics.Metric`.

    Raises:
        ConfigError: if `ks` is empty or one of them is below 1.
    """

    is_differentiable, higher_is_better, full_state_update = False, True, False
    values: Tensor  # (queries, number of K) float64, NaN for queries that were not counted

    def __init__(self, name: str, ks: Iterable[int], queries: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.name, self.ks = name, sorted(set(ks))
        check_cutoffs(name, self.ks)
        # A tensor of one shape on every rank: torchmetrics cannot gather lists if one of them is empty.
        uncounted = torch.full((queries, len(self.ks)), torch.nan, dtype=torch.float64)
        self.add_state("values", uncounted, dist_reduce_fx=_first_counted)

    def update(self, queries: Tensor, hits: Tensor, relevant: Tensor | None = None) -> None:
        """Count queries. Queries that were counted before, in this or an earlier call, are ignored.

        Args:
            queries: (N,) int64 positions of the queries.
            hits: (N, C) bool, True where a ranked passage is relevant, best passage first; C at least the largest K.
            relevant: (N,) int64 number of relevant passages per query; required by `fractional_recall` and `ndcg`.

        Raises:
            ValueError: if shapes, dtypes or positions are invalid.
        """
        values = torch.stack(list(rank_metrics(self.name, self.ks, hits, relevant).values()), dim=1)
        if queries.dtype != torch.int64 or queries.shape != hits.shape[:1]:
            raise ValueError(
                f"{self.name}@K: expected int64 queries of shape ({len(hits)},), "
                f"got {queries.dtype} of shape {tuple(queries.shape)}"
            )
        if ((queries < 0) | (queries >= len(self.values))).any():
            raise ValueError(
                f"{self.name}@K: expected query positions from 0 to {len(self.values) - 1}, "
                f"got {int(queries.min())} to {int(queries.max())}"
            )
        queries, order = queries.to(self.values.device).sort(stable=True)
        new = self.values[queries, 0].isnan()
        new[1:] &= queries[1:] != queries[:-1]
        self.values[queries[new]] = values.to(self.values.device)[order][new]

    def by_query(self) -> dict[str, Tensor]:
        """Return the values of each query, gathered from all ranks; call it on all ranks.

        Returns:
            Metric name to (queries,) float64 on the CPU, NaN for queries that were not counted.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            columns = self.values.T.cpu().clone()
        return {f"{self.name}@{k}": column for k, column in zip(self.ks, columns, strict=True)}

    def compute(self) -> dict[str, float]:
        return query_means({f"{self.name}@{k}": self.values[:, i] for i, k in enumerate(self.ks)})


def _first_counted(stacked: Tensor) -> Tensor:
    """Reduce (ranks, queries, K) to (queries, K): for each query, the values of the first rank that counted it."""
    first = (~stacked.isnan()).int().argmax(dim=0, keepdim=True)
    return stacked.gather(0, first)[0]

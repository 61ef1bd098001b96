"""The metrics of rankings as torchmetrics metrics, counted over batches and ranks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from ret_lightning.retrieval.metrics.rank_metrics import check_cutoffs, query_means, rank_metrics


class QueryMetric(Metric):
    """A metric of `METRICS` for torchmetrics: its means over the queries of all ranks, each query counted once.

    The state has a row for each query of the subset, so that one which a sampler repeats, in this process or in another, counts
    once. `compute` returns `{"recall@1": ..., "recall@5": ...}`, ascending in K; `{}` if no query was counted.

    Args:
        name: of the metric.
        ks: the values of K.
        queries: how many queries there are on all ranks together; `update` identifies them by their positions, from 0.
        kwargs: of `torchmetrics.Metric`.

    Raises:
        ConfigError: see `rank_metrics`.
    """

    is_differentiable, higher_is_better, full_state_update = False, True, False
    values: Tensor  # (queries, number of K) float64, NaN for a query that is not counted yet

    def __init__(self, name: str, ks: Iterable[int], queries: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.name, self.ks = name, sorted(set(ks))
        check_cutoffs(name, self.ks)
        # One shape on every rank, whatever it counted: torchmetrics cannot gather lists of which one is empty.
        nothing = torch.full((queries, len(self.ks)), torch.nan, dtype=torch.float64)
        self.add_state("values", nothing, dist_reduce_fx=_first_counted)

    def update(self, queries: Tensor, hits: Tensor, relevant: Tensor | None = None) -> None:
        """Count queries; what a query counted before, in this call or an earlier one, stays.

        Args:
            queries: (N,) int64, the position of each among the queries.
            hits: see `rank_metrics`.
            relevant: see `rank_metrics`.
        """
        values = torch.stack(list(rank_metrics(self.name, self.ks, hits, relevant).values()), dim=1)
        if queries.dtype != torch.int64 or queries.shape != hits.shape[:1]:
            raise ValueError(
                f"{self.name}@K: queries must be int64 of shape ({len(hits)},), "
                f"got {queries.dtype} of shape {tuple(queries.shape)}"
            )
        if ((queries < 0) | (queries >= len(self.values))).any():
            raise ValueError(
                f"{self.name}@K: positions of queries from {int(queries.min())} to {int(queries.max())}, "
                f"where there are {len(self.values)} queries"
            )
        queries, order = queries.to(self.values.device).sort(stable=True)
        new = self.values[queries, 0].isnan()
        new[1:] &= queries[1:] != queries[:-1]
        self.values[queries[new]] = values.to(self.values.device)[order][new]

    def by_query(self) -> dict[str, Tensor]:
        """Name to (queries,) float64 on the CPU, of all ranks, NaN where not counted; all ranks must call it."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            columns = self.values.T.cpu().clone()
        return {f"{self.name}@{k}": column for k, column in zip(self.ks, columns, strict=True)}

    def compute(self) -> dict[str, float]:
        return query_means({f"{self.name}@{k}": self.values[:, i] for i, k in enumerate(self.ks)})


def _first_counted(stacked: Tensor) -> Tensor:
    """(ranks, queries, number of K) -> (queries, number of K): of each query the values of the first rank that counted it."""
    first = (~stacked.isnan()).int().argmax(dim=0, keepdim=True)
    return stacked.gather(0, first)[0]

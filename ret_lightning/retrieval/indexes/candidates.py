"""What all approximate indexes share: something quick proposes candidates, exact MaxSim puts them in order."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ret_lightning.retrieval.indexes.base import Index, check_at_least_one
from ret_lightning.retrieval.indexes.exact import (
    MARGIN,
    ExactIndex,
    rerank_candidates,
    scan_error_bound,
    score_candidates,
)
from ret_lightning.retrieval.ranking import Ranking, top_columns
from ret_lightning.retrieval.store.embeddings import Embeddings

MIN_CANDIDATES = 512  # candidates, where that is automatic; see `FaissIndex` for what was measured


class CandidateIndex(Index):
    """Ranks each query's candidates by their exact MaxSim scores, in the order that `ExactIndex` gives.

    A pool of no more passages than candidates is ranked as `ExactIndex` does it.

    Args:
        candidates: passages a query whose exact scores are made (at least top_k are); None for automatic, 4 top_k and at
            least 512.
        device: where exact scores are made, see `Index`.
        exact_fallback: rank a query for which fewer than top_k candidates are found as `ExactIndex` does, so that every
            ranking is full; `Ranking.short` marks these queries. False: their rankings end with the candidates.

    Raises:
        ConfigError: if `candidates` is below 1.
    """

    def __init__(
        self,
        candidates: int | None = None,
        device: str | torch.device | None = None,
        exact_fallback: bool = True,
    ) -> None:
        super().__init__(device)
        check_at_least_one(self, candidates=candidates)
        self.candidates = candidates
        self.exact_fallback = exact_fallback
        self._exact = ExactIndex(device)
        self._short: list[Tensor] = []  # of the search that is running, by block of queries

    def search(self, queries: Tensor, top_k: int) -> Ranking:
        """See `Index.search`; the ranking has `short`, and is full unless `exact_fallback` is off."""
        self._short = []
        ranking = super().search(queries, top_k)
        short = torch.cat([torch.zeros(0, dtype=torch.bool), *self._short])
        return Ranking(ranking.rows, ranking.scores, short)

    def search_candidates(self, queries: Tensor, top_k: int) -> Ranking:
        """See `Index.search_candidates`."""
        before, self.exact_fallback = self.exact_fallback, False
        try:
            return self.search(queries, top_k)
        finally:
            self.exact_fallback = before

    def _build(self, passages: Embeddings) -> None:
        self._build_proposals(passages)
        self._exact.device = self.device  # which may have been settled since
        self._exact.build(passages)

    def clear(self) -> None:
        super().clear()
        self._exact.clear()
        self._clear_proposals()

    def _save(self, folder: Path) -> dict[str, Any]:
        return self._save_proposals(folder) | {"exact": self._exact._save(folder)}

    def _restore(self, folder: Path, passages: Embeddings, state: dict[str, Any]) -> None:
        self._restore_proposals(folder, passages, state)
        self._exact._restore(folder, passages, state["exact"])
        self._exact._passages = passages

    def _search(self, queries: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
        count = max(self.candidates or max(MIN_CANDIDATES, 4 * top_k), top_k)
        if len(self._passages) <= count:
            self._short.append(torch.zeros(len(queries), dtype=torch.bool))
            return self._rank_exactly(queries, top_k)
        candidates, found = self._propose(queries, count)
        rows, scores = self._rerank(queries, candidates.to(queries.device), top_k)
        short = found.to(queries.device) < top_k
        self._short.append(short.cpu())
        if self.exact_fallback and short.any():
            rows[short], scores[short] = self._rank_exactly(queries[short], top_k)
        return rows, scores

    def _rerank(self, queries: Tensor, candidates: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
        """`rerank_candidates`, which is in float64, for those candidates only that can be among the best top_k."""
        width = top_k + MARGIN
        if candidates.shape[1] <= 2 * width:
            return rerank_candidates(queries, self._passages, candidates, top_k)
        candidates = candidates.sort(dim=1).values  # for `top_columns`: of equal scores the lower row first
        coarse = score_candidates(queries, self._passages, candidates, torch.float32)
        kept = top_columns(coarse, width)
        rows, scores = rerank_candidates(queries, self._passages, candidates.gather(1, kept), top_k)
        last = coarse.gather(1, kept[:, -1:])[:, 0]
        unsettled = scores[:, -1] <= last + scan_error_bound(queries, self._exact.largest_norm, torch.float32)
        if unsettled.any():
            rows[unsettled], scores[unsettled] = rerank_candidates(
                queries[unsettled], self._passages, candidates[unsettled], top_k
            )
        return rows, scores

    def _rank_exactly(self, queries: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
        ranking = self._exact.search(queries, top_k)
        return ranking.rows.to(queries.device), ranking.scores.to(queries.device)

    @abstractmethod
    def _build_proposals(self, passages: Embeddings) -> None:
        """Makes what `_propose` searches; if it raises, the index must be what it was."""

    @abstractmethod
    def _clear_proposals(self) -> None:
        """Lets go of what `_propose` searches."""

    @abstractmethod
    def _save_proposals(self, folder: Path) -> dict[str, Any]:
        """`_save` of what `_propose` searches."""

    @abstractmethod
    def _restore_proposals(self, folder: Path, passages: Embeddings, state: dict[str, Any]) -> None:
        """`_restore` of it."""

    @abstractmethod
    def _propose(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Candidates (Nq, count) int64, different rows of the pool for each query, then -1 if there are fewer; and how many
        there are, (Nq,) int64. `count` is less than the size of the pool."""

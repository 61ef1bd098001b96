"""The base class of approximate indexes: candidate generation, then reranking by exact MaxSim scores.

Shapes: Nq queries, C candidates per query, N passages in the pool.
"""

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

MIN_CANDIDATES = 512  # of the automatic number of candidates


class CandidateIndex(Index):
    """An index that generates candidates and ranks them by their exact MaxSim scores, in the order of `ExactIndex`.

    If the number of candidates reaches the number of passages, all passages are ranked exactly.

    Args:
        candidates: number of passages per query whose exact scores are computed, at least top_k. None: 4 * top_k, at least
            512.
        device: CPU or CUDA device on which exact scores are computed. None: the device of the passage vectors.
        exact_fallback: whether to rank a query with fewer than top_k candidates exactly, so that every ranking is full.
            `Ranking.short` marks these queries. If False, their rankings end with the last candidate.

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
        self._short: list[Tensor] = []  # of the current search, one tensor per block of queries

    def search(self, queries: Tensor, top_k: int) -> Ranking:
        """Rank the passages for each query.

        Args:
            queries: (Nq, Lq, d) floating-point tensor with finite values.
            top_k: number of passages to return per query, at least 1.

        Returns:
            A `Ranking` of shape (Nq, top_k) with `short` set. It is full unless `exact_fallback` is False.

        Raises:
            ConfigError: if `top_k` is not an integer of at least 1.
            TypeError: if `queries` is not a tensor.
            ValueError: if the queries do not match the passages or are not finite, or the index is not built.
        """
        self._short = []
        ranking = super().search(queries, top_k)
        short = torch.cat([torch.zeros(0, dtype=torch.bool), *self._short])
        return Ranking(ranking.rows, ranking.scores, short)

    def search_candidates(self, queries: Tensor, top_k: int) -> Ranking:
        """Search without the exact fallback, whatever `exact_fallback` is.

        Args:
            queries: (Nq, Lq, d) floating-point tensor with finite values.
            top_k: number of passages to return per query, at least 1.

        Returns:
            A `Ranking` of shape (Nq, top_k) with `short` set; short rankings end with the last candidate.
        """
        before, self.exact_fallback = self.exact_fallback, False
        try:
            return self.search(queries, top_k)
        finally:
            self.exact_fallback = before

    def _build(self, passages: Embeddings) -> None:
        self._build_proposals(passages)
        self._exact.device = self.device  # may have changed since the constructor
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
        if len(self._built) <= count:
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
        """Rerank candidates in float64 after discarding those that cannot be among the best top_k."""
        width = top_k + MARGIN
        if candidates.shape[1] <= 2 * width:
            return rerank_candidates(queries, self._built, candidates, top_k)
        candidates = candidates.sort(dim=1).values  # `top_columns` orders equal scores by column
        coarse = score_candidates(queries, self._built, candidates, torch.float32)
        kept = top_columns(coarse, width)
        rows, scores = rerank_candidates(queries, self._built, candidates.gather(1, kept), top_k)
        last = coarse.gather(1, kept[:, -1:])[:, 0]
        undecided = scores[:, -1] <= last + scan_error_bound(queries, self._exact.largest_norm, torch.float32)
        if undecided.any():
            rows[undecided], scores[undecided] = rerank_candidates(
                queries[undecided], self._built, candidates[undecided], top_k
            )
        return rows, scores

    def _rank_exactly(self, queries: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
        ranking = self._exact.search(queries, top_k)
        return ranking.rows.to(queries.device), ranking.scores.to(queries.device)

    @abstractmethod
    def _build_proposals(self, passages: Embeddings) -> None:
        """Build what `_propose` searches. If this raises, the index must keep its earlier state."""

    @abstractmethod
    def _clear_proposals(self) -> None:
        """Release what `_propose` searches."""

    @abstractmethod
    def _save_proposals(self, folder: Path) -> dict[str, Any]:
        """Write what `_propose` searches into an empty folder and return a JSON-serializable state."""

    @abstractmethod
    def _restore_proposals(self, folder: Path, passages: Embeddings, state: dict[str, Any]) -> None:
        """Restore what `_propose` searches from the files and the state of `_save_proposals`."""

    @abstractmethod
    def _propose(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return candidates for each query.

        Args:
            queries: (Nq, Lq, d) float32 on the device of the index.
            count: number of candidates per query (C), less than N.

        Returns:
            Candidates (Nq, C) int64, unique rows per query padded with -1, and their number (Nq,) int64.
        """

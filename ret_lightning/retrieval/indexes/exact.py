"""Exact search: MaxSim scores of all passages. It is the reference for every other index.

Shapes: Nq queries of Lq vectors, N passages of k vectors, width d, C candidates per query.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ret_lightning.ops.maxsim import maxsim
from ret_lightning.retrieval.indexes.base import Index, check_at_least_one
from ret_lightning.retrieval.ranking import top_columns
from ret_lightning.retrieval.store.embeddings import Embeddings

# Candidates beyond top_k that the coarse scan selects. It affects the number of rescans only: the margin is checked.
MARGIN = 32

# Bytes of a block of passages in float32: on a CPU small enough for the cache, on a GPU large enough to hide the transfer.
# A score and its row take 24 bytes.
CPU_BLOCK_BYTES, GPU_BLOCK_BYTES = 1 << 25, 1 << 30
SCORES_PER_BLOCK = 1 << 22

# Elements of gathered passage vectors: on a CPU they should fit the L2 cache, on a GPU hide the kernel launches.
CPU_GATHER_ELEMENTS = 1 << 18
GPU_GATHER_ELEMENTS = 1 << 27


class ExactIndex(Index):
    """Rank passages by exact MaxSim scores, computed block by block.

    A scan in a fast precision (float16 on a GPU if the passages are float16, else float32) selects top_k + MARGIN
    candidates per query, whose scores are recomputed in float64. The result is exact if the last selected score is below
    the K-th score by more than the error bound of the scan. Queries for which it is not, for example with many equal
    passages, are scanned again in float32 and finally in float64.

    Args:
        device: CPU or CUDA device on which scores are computed; passages are moved there block by block. None: the device
            of the passage vectors.
        block: number of passages scored at a time. None: chosen by memory. Does not affect the result.

    Attributes:
        largest_norm: largest L2 norm of a passage vector; 0 without passages.

    Raises:
        ConfigError: if `block` is below 1, or the device is unknown, not available or does not support float64.
    """

    approximate: ClassVar[bool] = False
    shardable: ClassVar[bool] = True

    def __init__(self, device: str | torch.device | None = None, block: int | None = None) -> None:
        super().__init__(device)
        check_at_least_one(self, block=block)
        self.block = block
        self.largest_norm = 0.0

    def _build(self, passages: Embeddings) -> None:
        self.largest_norm = _find_largest_norm(passages)

    def _save(self, folder: Path) -> dict[str, Any]:
        return {"largest_norm": self.largest_norm}

    def _restore(self, folder: Path, passages: Embeddings, state: dict[str, Any]) -> None:
        self.largest_norm = float(state["largest_norm"])

    def _search(self, queries: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
        passages = self._built
        width = top_k + MARGIN
        rows = torch.empty(len(queries), top_k, dtype=torch.int64, device=queries.device)
        scores = queries.new_empty(len(queries), top_k)
        remaining = torch.arange(len(queries), device=queries.device)
        # A float64 scan costs about two float32 scans, so selecting half of the passages saves nothing.
        for dtype in _scan_dtypes(queries, passages.vectors) if len(passages) > 2 * width else ():
            own = queries[remaining]
            candidates, coarse = self._scan(own, width, dtype)
            rows[remaining], scores[remaining] = rerank_candidates(own, passages, candidates, top_k)
            # A discarded passage scores at most coarse[:, -1] + error.
            remaining = remaining[
                scores[remaining, -1] <= coarse[:, -1] + scan_error_bound(own, self.largest_norm, dtype)
            ]
            if len(remaining) == 0:
                return rows, scores
        rows[remaining], scores[remaining] = self._scan(queries[remaining], top_k, torch.float64)
        return rows, scores

    def _scan(self, queries: Tensor, top_k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the best rows and scores, both (Nq, top_k), by MaxSim in `dtype`."""
        vectors = self._built.vectors
        block = self.block
        if block is None:
            block_bytes = GPU_BLOCK_BYTES if queries.is_cuda else CPU_BLOCK_BYTES
            block = max(
                1, min(block_bytes // (4 * vectors.shape[1] * vectors.shape[2]), SCORES_PER_BLOCK // len(queries))
            )
        queries = queries.to(dtype)
        rows = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
        scores = torch.empty(len(queries), 0, dtype=torch.float32, device=queries.device)
        for i in range(0, len(vectors), block):
            passages = vectors[i : i + block].to(queries.device, dtype)
            # Kept rows come first and are lower, so `top_columns` still orders equal scores by row.
            scores = torch.cat([scores, maxsim(queries, passages).float()], dim=1)
            new_rows = torch.arange(i, i + len(passages), device=queries.device)
            rows = torch.cat([rows, new_rows.expand(len(queries), -1)], dim=1)
            kept = top_columns(scores, min(top_k, scores.shape[1]))
            rows, scores = rows.gather(1, kept), scores.gather(1, kept)
            self._built.release()
        return rows, scores


def _find_largest_norm(passages: Embeddings) -> float:
    longest = 0.0
    for block in passages.vectors.split(1024) if len(passages) else ():
        longest = max(longest, float(torch.linalg.vector_norm(block, dim=2, dtype=torch.float32).max()))
        passages.release()
    return longest


def scan_error_bound(queries: Tensor, longest: float, dtype: torch.dtype) -> Tensor:
    """Return an upper bound of the error of scores scanned in `dtype`, for each query.

    The float32 inner product of two vectors q and p of width d has an error of at most d * u * |q| * |p|, and adding Lq of
    them adds an error of at most Lq * u times the sum of their magnitudes, where u = 2^-24 (Higham, Accuracy and Stability
    of Numerical Algorithms, section 3.1). The factor 2 covers the terms in u^2 and the rounding of the two compared scores.
    A float16 scan also rounds the queries, which changes a maximum by at most the norm of the change times the largest
    norm.

    Args:
        queries: (Nq, Lq, d) float32.
        longest: largest L2 norm of a passage vector.
        dtype: float32, or float16 for float16 passages; sums are accumulated in float32.

    Returns:
        (Nq,) float32.
    """
    _, length, width = queries.shape
    arithmetic = 2 * (width + length) * 2.0**-24 * queries.norm(dim=2).sum(dim=1)
    return longest * (arithmetic + (queries - queries.to(dtype).float()).norm(dim=2).sum(dim=1))


def rerank_candidates(queries: Tensor, passages: Embeddings, candidates: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Rank the candidates of each query by their exact scores.

    Args:
        queries: (Nq, Lq, d) float32 on the device to compute on.
        passages: the N passages; candidates are gathered from them.
        candidates: (Nq, C) int64, unique rows of `passages` per query in any order; -1 for none.
        top_k: number of candidates to keep, at most C.

    Returns:
        rows (Nq, top_k) int64 and scores (Nq, top_k) float32, on the device of the queries.
    """
    candidates = candidates.sort(dim=1).values  # `top_columns` orders equal scores by column
    scores = score_candidates(queries, passages, candidates, torch.float64)
    kept = top_columns(scores, top_k)
    return candidates.gather(1, kept), scores.gather(1, kept)


def score_candidates(queries: Tensor, passages: Embeddings, candidates: Tensor, dtype: torch.dtype) -> Tensor:
    """Compute the MaxSim scores of each query with its candidates in `dtype`.

    Args:
        queries: (Nq, Lq, d) float32.
        passages: the N passages.
        candidates: (Nq, C) int64 rows of `passages`; -1 for none.
        dtype: precision of the computation.

    Returns:
        (Nq, C) float32; -inf where the candidate is -1.
    """
    scores = queries.new_empty(candidates.shape)
    gathered_rows = candidates.clamp(min=0)
    length, width = passages.vectors.shape[1:]
    limit = GPU_GATHER_ELEMENTS if queries.is_cuda else CPU_GATHER_ELEMENTS
    columns = min(candidates.shape[1], max(1, limit // (length * width)))
    rows = max(1, limit // (columns * length * width))
    for i in range(0, len(queries), rows):
        query_block = queries[i : i + rows].to(dtype)
        for j in range(0, candidates.shape[1], columns):
            passage_block = passages.take(gathered_rows[i : i + rows, j : j + columns]).to(queries.device, dtype)
            count = passage_block.shape[1]
            similarity = query_block @ passage_block.flatten(1, 2).transpose(1, 2)  # (rows, Lq, count * k)
            best = similarity.unflatten(2, (count, length)).amax(dim=3)
            scores[i : i + rows, j : j + columns] = best.sum(dim=1)
    return scores.masked_fill_(candidates < 0, -torch.inf)


def _scan_dtypes(queries: Tensor, vectors: Tensor) -> tuple[torch.dtype, ...]:
    half = queries.is_cuda and vectors.dtype == torch.float16
    return (torch.float16, torch.float32) if half else (torch.float32,)

"""Every passage scored by MaxSim, block by block: the yardstick for every other index, and the order that all of them give."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ret_lightning.ops.maxsim import maxsim
from ret_lightning.retrieval.indexes.base import Index, check_at_least_one
from ret_lightning.retrieval.ranking import top_columns
from ret_lightning.retrieval.store.embeddings import Embeddings

# Candidates beyond top_k that coarse scores select for the float64 order. Any number gives the right result, since the
# margin is checked; 32 lets a few hundred passages of one score per unit of 32 be settled without a second scan.
MARGIN = 32

# Bytes of a block of passages in the scan, in float32: a CPU's block is read from the store and multiplied while it is near,
# a GPU's is large enough to hide the transfer. And scores a block at most, which with their places take 24 bytes each.
CPU_BLOCK_BYTES, GPU_BLOCK_BYTES = 1 << 25, 1 << 30
SCORES_PER_BLOCK = 1 << 22

# Numbers of gathered passage vectors at a time. On a CPU the block should stay in the second-level cache and in memory
# that the allocator hands out again; on a GPU it should be large enough to hide the launches (1 GiB in float64).
CPU_GATHER_ELEMENTS = 1 << 18
GPU_GATHER_ELEMENTS = 1 << 27


class ExactIndex(Index):
    """Ranks by the MaxSim score of every passage, a block of passages at a time.

    A scan in the fastest arithmetic that the device has for the pool (half precision on a GPU if the pool has it, else
    float32) selects the best top_k + MARGIN passages of each query, whose scores are then made again in float64. That is
    exact wherever the last selected score lies further below the K-th than the scan can err; queries for which it does not (a
    pool with many equal passages, say) are scanned again, in float32 and at last in float64.

    Args:
        device: see `Index`. Passages elsewhere are moved there a block at a time.
        block: passages scored at a time; None for automatic, by memory; changes no result.

    Attributes:
        largest_norm: the length of the longest vector of the pool; 0 for an empty one.

    Raises:
        ConfigError: if `block` is below 1, or as `Index` does.
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
        passages = self._passages
        width = top_k + MARGIN
        rows = torch.empty(len(queries), top_k, dtype=torch.int64, device=queries.device)
        scores = queries.new_empty(len(queries), top_k)
        left = torch.arange(len(queries), device=queries.device)
        # A float64 scan costs what two float32 scans do, so a shortlist of half the pool saves nothing.
        for dtype in _scan_dtypes(queries, passages.vectors) if len(passages) > 2 * width else ():
            own = queries[left]
            candidates, rough = self._scan(own, width, dtype)
            rows[left], scores[left] = rerank_candidates(own, passages, candidates, top_k)
            # No passage that was left out scores above rough[:, -1] + error: none of them is among the best top_k.
            left = left[scores[left, -1] <= rough[:, -1] + scan_error_bound(own, self.largest_norm, dtype)]
            if len(left) == 0:
                return rows, scores
        rows[left], scores[left] = self._scan(queries[left], top_k, torch.float64)
        return rows, scores

    def _scan(self, queries: Tensor, top_k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The best top_k rows and scores (both (Nq, top_k)) by MaxSim in `dtype`, keeping the best of the blocks so far."""
        vectors = self._passages.vectors
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
            # What was kept so far comes first and has the lower rows, so columns still order equal scores by row.
            scores = torch.cat([scores, maxsim(queries, passages).float()], dim=1)
            new_rows = torch.arange(i, i + len(passages), device=queries.device)
            rows = torch.cat([rows, new_rows.expand(len(queries), -1)], dim=1)
            kept = top_columns(scores, min(top_k, scores.shape[1]))
            rows, scores = rows.gather(1, kept), scores.gather(1, kept)
            self._passages.release()
        return rows, scores


def _find_largest_norm(passages: Embeddings) -> float:
    longest = 0.0
    for block in passages.vectors.split(1024) if len(passages) else ():
        longest = max(longest, float(torch.linalg.vector_norm(block, dim=2, dtype=torch.float32).max()))
        passages.release()
    return longest


def scan_error_bound(queries: Tensor, longest: float, dtype: torch.dtype) -> Tensor:
    """How far a score scanned in `dtype` may lie from the true one, for each query: (Nq,) float32.

    A product of two vectors of width d summed in float32 errs by at most d u |q| |p|, and adding Lq of them by Lq u times the
    sum of their magnitudes, where u = 2^-24 (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). Twice that
    covers the terms in u squared and the rounding of the two compared scores. A scan in half precision takes rounded queries,
    and what rounding moved a vector by, times the longest passage vector, is the most that it moves a maximum.

    Args:
        queries: (Nq, Lq, d) float32.
        longest: the length of the longest passage vector.
        dtype: float16 for a pool of float16, or float32; sums are in float32 either way.
    """
    _, length, width = queries.shape
    arithmetic = 2 * (width + length) * 2.0**-24 * queries.norm(dim=2).sum(dim=1)
    return longest * (arithmetic + (queries - queries.to(dtype).float()).norm(dim=2).sum(dim=1))


def rerank_candidates(queries: Tensor, passages: Embeddings, candidates: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Puts each query's candidates in their exact order and keeps the best.

    Args:
        queries: (Nq, Lq, d) float32, on the device to compute on.
        passages: the pool; its vectors are gathered from where they are.
        candidates: (Nq, C) int64, different rows of the pool for each query, in any order; -1 for none.
        top_k: at most C.

    Returns:
        rows (Nq, top_k) int64 and scores (Nq, top_k) float32, on the device of the queries.
    """
    candidates = candidates.sort(dim=1).values  # so that of equal scores the lower column is the lower row
    scores = score_candidates(queries, passages, candidates, torch.float64)
    kept = top_columns(scores, top_k)
    return candidates.gather(1, kept), scores.gather(1, kept)


def score_candidates(queries: Tensor, passages: Embeddings, candidates: Tensor, dtype: torch.dtype) -> Tensor:
    """(Nq, C) float32 MaxSim scores of each query with its own candidates, made in `dtype`; -inf where there is none."""
    scores = queries.new_empty(candidates.shape)
    places = candidates.clamp(min=0)
    length, width = passages.vectors.shape[1:]
    limit = GPU_GATHER_ELEMENTS if queries.is_cuda else CPU_GATHER_ELEMENTS
    columns = min(candidates.shape[1], max(1, limit // (length * width)))
    rows = max(1, limit // (columns * length * width))
    for i in range(0, len(queries), rows):
        query_block = queries[i : i + rows].to(dtype)
        for j in range(0, candidates.shape[1], columns):
            passage_block = passages.take(places[i : i + rows, j : j + columns]).to(queries.device, dtype)
            count = passage_block.shape[1]
            similarity = query_block @ passage_block.flatten(1, 2).transpose(1, 2)  # (rows, Lq, count * k)
            best = similarity.unflatten(2, (count, length)).amax(dim=3)
            scores[i : i + rows, j : j + columns] = best.sum(dim=1)
    return scores.masked_fill_(candidates < 0, -torch.inf)


def _scan_dtypes(queries: Tensor, vectors: Tensor) -> tuple[torch.dtype, ...]:
    half = queries.is_cuda and vectors.dtype == torch.float16
    return (torch.float16, torch.float32) if half else (torch.float32,)

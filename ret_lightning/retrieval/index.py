"""Indexes: a pool of passages that can be searched. `ExactIndex` is the yardstick for every other one.

All indexes put their results in the same order: by MaxSim in float64, rounded to float32, equal scores by the lower row.
Float32 arithmetic alone would not do: its last bit changes with the shape of a block and the number of threads, so that
equal passages would change places. With float64 a score changes only where its sum lies within about 1e-15 of the border
between two float32 numbers, and equal passages tie.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ret_lightning.errors import ConfigError
from ret_lightning.losses.maxsim import maxsim
from ret_lightning.retrieval.ranking import Ranking, top_columns
from ret_lightning.retrieval.store import Embeddings

QUERY_BLOCK = 4096  # queries at a time: with a block of 4,096 passages, 64 MiB of float32 scores

# Candidates beyond top_k that float32 scores select for the float64 order. Any number gives the right result, since
# `ExactIndex` checks it; 32 lets a few hundred passages of one score per unit of 32 be settled without a second scan.
MARGIN = 32

# Numbers of gathered passage vectors at a time. On a CPU the block should stay in the second-level cache and in memory
# that the allocator hands out again; on a GPU it should be large enough to hide the launches (1 GiB in float64).
CPU_GATHER_ELEMENTS = 1 << 18
GPU_GATHER_ELEMENTS = 1 << 27


class Index(ABC):
    """A searchable pool. Settings go into the constructor, a pool into `build`; building again replaces the pool.

    Args:
        device: where scores are computed, a CPU or a CUDA device; None for the device that the pool's vectors are on.

    Raises:
        ConfigError: if the device has no float64, which the order is made in.
    """

    def __init__(self, device: str | torch.device | None = None) -> None:
        self.device = None if device is None else torch.device(device)
        if self.device is not None and self.device.type == "mps":
            raise ConfigError("index: device mps has no float64, which the order of passages needs; use device=cpu")
        self._passages: Embeddings | None = None

    @torch.no_grad()
    def build(self, passages: Embeddings) -> None:
        """Makes the index of these passages; if that fails, the index stays what it was."""
        self._build(passages)
        self._passages = passages

    @torch.no_grad()
    def search(self, queries: Tensor, top_k: int) -> Ranking:
        """Ranks the pool for each query.

        Args:
            queries: (Nq, Lq, d), floating point, finite; d as in the pool, Lq may differ from the passages' k.
            top_k: K, how many passages to return for each query.

        Returns:
            A `Ranking` of shape (Nq, K) on the CPU. It is full, min(K, N) passages a query, whatever the index.

        Raises:
            ConfigError: if `top_k` is below 1.
            ValueError: on queries that do not fit the pool, or before `build`.
        """
        passages = self._passages
        if passages is None:
            raise ValueError(f"{type(self).__name__}: build the index before searching it")
        _check_search(queries, top_k, passages.vectors.shape[2])
        rows = torch.full((len(queries), top_k), -1)
        scores = torch.full((len(queries), top_k), -torch.inf)
        found = min(top_k, len(passages))
        device = self.device or passages.vectors.device
        with _full_precision(device):
            for i in range(0, len(queries) if found else 0, QUERY_BLOCK):
                block = slice(i, i + QUERY_BLOCK)
                best_rows, best_scores = self._search(queries[block].to(device, torch.float32), found)
                rows[block, :found] = best_rows.cpu()
                scores[block, :found] = best_scores.cpu()
        return Ranking(rows, scores)

    @abstractmethod
    def _build(self, passages: Embeddings) -> None: ...

    @abstractmethod
    def _search(self, queries: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
        """Queries on the index's device, top_k at most N -> rows (Nq, top_k) int64, scores (Nq, top_k) float32."""


class ExactIndex(Index):
    """Ranks by the MaxSim score of every passage, a block of passages at a time.

    One scan in float32 selects the best top_k + MARGIN passages of each query, whose scores are then made again in float64.
    That is exact wherever the last selected score lies further below the K-th than float32 can err; queries for which it
    does not (a pool with many equal passages, say) are scanned again in float64.

    Args:
        device: see `Index`. Passages elsewhere are moved there a block at a time.
        block: passages scored at a time; bounds the memory, changes no result.

    Raises:
        ConfigError: if `block` is below 1, or as `Index` does.
    """

    def __init__(self, device: str | torch.device | None = None, block: int = 4096) -> None:
        super().__init__(device)
        if block < 1:
            raise ConfigError(f"ExactIndex: block must be at least 1, got {block}")
        self.block = block
        self._largest_norm = 0.0

    def _build(self, passages: Embeddings) -> None:
        norms = torch.linalg.vector_norm(passages.vectors, dim=2, dtype=torch.float32)
        self._largest_norm = float(norms.max()) if len(passages) else 0.0

    def _search(self, queries: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
        vectors = self._passages.vectors
        width = top_k + MARGIN
        # A float64 scan costs what two float32 scans do, so a shortlist of half the pool saves nothing.
        if len(vectors) <= 2 * width:
            return _scan(queries, vectors, top_k, torch.float64, self.block)
        candidates, rough = _scan(queries, vectors, width, torch.float32, self.block)
        rows, scores = order_candidates(queries, vectors, candidates, top_k)
        # No passage that was left out scores above rough[:, -1] + error, so none of them can be among the best top_k.
        unsettled = scores[:, -1] <= rough[:, -1] + self._error(queries)
        if unsettled.any():
            rows[unsettled], scores[unsettled] = _scan(queries[unsettled], vectors, top_k, torch.float64, self.block)
        return rows, scores

    def _error(self, queries: Tensor) -> Tensor:
        """How far a float32 score may lie from the true one, for each query: (Nq,).

        A product of two vectors of width d errs by at most d u |q| |p|, and adding Lq of them by Lq u times the sum of
        their magnitudes, where u = 2^-24 (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). Twice that
        covers the terms in u squared and the rounding of the two compared scores.
        """
        _, length, width = queries.shape
        return 2 * (width + length) * 2.0**-24 * self._largest_norm * queries.norm(dim=2).sum(dim=1)


def order_candidates(queries: Tensor, vectors: Tensor, candidates: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Puts each query's candidates in their exact order and keeps the best.

    Args:
        queries: (Nq, Lq, d) float32, on the device to compute on.
        vectors: (N, k, d), the pool; gathered from where it is.
        candidates: (Nq, C) int64, different rows of the pool for each query, in any order.
        top_k: at most C.

    Returns:
        rows (Nq, top_k) int64 and scores (Nq, top_k) float32, on the device of the queries.
    """
    candidates = candidates.sort(dim=1).values  # so that of equal scores the lower column is the lower row
    scores = queries.new_empty(candidates.shape)
    places = candidates.to(vectors.device)
    length, width = vectors.shape[1:]
    limit = GPU_GATHER_ELEMENTS if queries.is_cuda else CPU_GATHER_ELEMENTS
    columns = min(candidates.shape[1], max(1, limit // (length * width)))
    rows = max(1, limit // (columns * length * width))
    for i in range(0, len(queries), rows):
        query_block = queries[i : i + rows].double()
        for j in range(0, candidates.shape[1], columns):
            passage_block = vectors[places[i : i + rows, j : j + columns]].to(queries.device, torch.float64)
            count = passage_block.shape[1]
            similarity = query_block @ passage_block.flatten(1, 2).transpose(1, 2)  # (rows, Lq, count * k)
            best = similarity.unflatten(2, (count, length)).amax(dim=3)
            scores[i : i + rows, j : j + columns] = best.sum(dim=1)
    kept = top_columns(scores, top_k)
    return candidates.gather(1, kept), scores.gather(1, kept)


def _scan(queries: Tensor, vectors: Tensor, top_k: int, dtype: torch.dtype, block: int) -> tuple[Tensor, Tensor]:
    """The best top_k rows and scores (both (Nq, top_k)) by MaxSim in `dtype`, keeping the best of the blocks so far."""
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
    return rows, scores


def _check_search(queries: Tensor, top_k: int, width: int) -> None:
    if top_k < 1:
        raise ConfigError(f"search: top_k must be at least 1, got {top_k}")
    if queries.dim() != 3 or queries.shape[1] == 0 or not queries.is_floating_point():
        raise ValueError(
            f"search: queries must be (Nq, Lq, d), floating point, Lq above 0; got {queries.dtype} "
            f"of shape {tuple(queries.shape)}"
        )
    if queries.shape[2] != width:
        raise ValueError(f"search: queries have width {queries.shape[2]}, the pool's vectors {width}")
    broken = ~torch.isfinite(queries).flatten(1).all(dim=1)
    if broken.any():
        raise ValueError(f"search: {int(broken.sum())} queries are not finite, first row {int(broken.nonzero()[0])}")


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Float32 products are made in float32, though training may run with TF32 or under autocast."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)

"""Candidates from a FAISS index of token vectors, ranked by exact MaxSim.

FAISS indexes single vectors, not sets. As in ColBERTv2 and PLAID (Santhanam et al., 2022), every vector of every passage is
added to one index. Each query vector retrieves its nearest vectors (hits), the passages of these hits are the candidates,
and exact MaxSim scores are computed from the stored vectors.

Shapes: Nq queries of Lq vectors, h hits per query vector, N passages of k vectors, width d.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ret_lightning.config.targets.renamed_keys import FAISS_KEYS, accept_renamed
from ret_lightning.errors import ConfigError
from ret_lightning.retrieval.indexes.base import check_at_least_one
from ret_lightning.retrieval.indexes.faiss_build import (
    MAX_GPU_HITS,
    PASSAGES_PER_BLOCK,
    FaissSpec,
    build_faiss,
    is_on_gpu,
    uses_gpu,
)
from ret_lightning.retrieval.indexes.faiss_candidates import FaissCandidates
from ret_lightning.retrieval.indexes.faiss_defaults import (
    MIN_TRAINED_VECTORS,
    automatic_m,
    automatic_nlist,
    automatic_nprobe,
    automatic_training_points,
    fill_factory,
)
from ret_lightning.retrieval.store.embeddings import Embeddings

log = logging.getLogger(__name__)

# Hits per block: about 50 MiB including temporary arrays.
BLOCK_ELEMENTS = 1 << 20
MAX_NBITS = 16  # 2^nbits centroids


class FaissIndex(FaissCandidates):
    """Rank the passages retrieved by a FAISS index of token vectors by their exact MaxSim scores.

    The candidates of a query are the passages that its vectors hit, ordered by the sum over the query vectors of the best
    hit in the passage. A query vector without a hit in a passage contributes the score of its worst hit, an upper bound of
    its true contribution. The same passages, queries and settings yield the same ranking.

    If a factory string with placeholders is used for fewer than 9,984 vectors, too few to train codes and inverted lists
    on, it is replaced by `Flat`, unless `nlist` is set.

    Args:
        factory: FAISS index factory string for inner products. It may contain the placeholders `{nlist}`, `{m}`, `{nbits}`
            and `{M}`, and `{pq}` for a product quantizer with `m` and `nbits`, in the fast-scan layout if nbits=4. `Flat`
            stores no copy of the vectors.
        candidates: number of passages per query whose exact scores are computed, at least top_k. None: 4 * top_k, at least
            512. All passages are ranked exactly if there are no more than that.
        hits: number of nearest vectors to retrieve per query vector. None: twice the candidates, because several hits can
            belong to one passage.
        nlist: number of inverted lists (IVF). None: the largest power of two up to 4 * sqrt(N * k).
        nprobe: number of inverted lists to search, at most nlist. None: 2 * sqrt(nlist), at most 32. Passages of a single
            vector need a larger value.
        m: number of sub-quantizers of a product quantizer, a divisor of d. None: as many as yield at most d / 4 bytes per
            vector.
        nbits: bits per sub-quantizer, at most 16. None: 4, the fast-scan layout; on a GPU, which has no fast scan, 8.
        M: number of neighbors per vector in a graph (HNSW). None: 32.
        training_points: number of vectors to train on. None: 32 per inverted list, at least 65,536.
        seed: seed of the sampling of training points and of k-means.
        gpu: whether FAISS uses a GPU. None: if `device` is a GPU, faiss-gpu is installed and it supports the index.
        device: CPU or CUDA device on which exact scores are computed. None: the device of the passage vectors.
        exact_fallback: whether to rank a query with fewer than top_k candidates exactly.

    Raises:
        ConfigError: if a number is below 1. `build` raises it if FAISS rejects the factory string, if there are too few
            vectors for the index, or if a setting has no placeholder in the factory string.
    """

    file = "tokens.faiss"

    @accept_renamed(FAISS_KEYS)
    def __init__(
        self,
        factory: str = "Flat",
        candidates: int | None = None,
        hits: int | None = None,
        nlist: int | None = None,
        nprobe: int | None = None,
        m: int | None = None,
        nbits: int | None = None,
        M: int | None = None,
        training_points: int | None = None,
        seed: int = 0,
        gpu: bool | None = None,
        device: str | torch.device | None = None,
        exact_fallback: bool = True,
    ) -> None:
        super().__init__(factory, candidates, nlist, nprobe, training_points, seed, gpu, device, exact_fallback)
        check_at_least_one(self, hits=hits, m=m, nbits=nbits, M=M)
        self.hits = hits
        self.m = m
        self.nbits = nbits
        self.M = M

    def _build_proposals(self, passages: Embeddings) -> None:
        k, width = passages.vectors.shape[1:]
        device = self.device or passages.vectors.device
        on_gpu = uses_gpu(self.gpu, device)
        spec = self._spec(len(passages) * k, width, on_gpu)
        if spec.factory == "Flat" and spec.nprobe is None and not on_gpu and not passages.vectors.is_cuda:
            self._faiss = _PoolTokens(passages)
            return

        def tokens(vectors: Tensor) -> Tensor:
            return vectors.flatten(0, 1).to("cpu", torch.float32).contiguous()

        self._faiss = build_faiss(spec, passages, width, k, tokens, device)

    def _spec(self, count: int, width: int, on_gpu: bool) -> FaissSpec:
        nlist = self.nlist or automatic_nlist(count)
        nbits = self.nbits or (8 if on_gpu else 4)
        m = self.m or automatic_m(width, nbits)
        values = {
            "nlist": nlist,
            "m": m,
            "nbits": nbits,
            "pq": f"PQ{m}x4fs" if nbits == 4 and not on_gpu else f"PQ{m}x{nbits}",
            "M": self.M or 32,
        }
        if width % m:
            raise ConfigError(
                f"FaissIndex: m: expected a divisor of the vector width {width}, got {m}",
                code="faiss-m-not-divisor",
                found=m,
                width=width,
            )
        if nbits > MAX_NBITS:
            raise ConfigError(
                f"FaissIndex: nbits: expected at most {MAX_NBITS}, got {nbits}",
                code="faiss-nbits-too-large",
                found=nbits,
                most=MAX_NBITS,
            )
        given = {"nlist": self.nlist, "m": self.m, "nbits": self.nbits, "M": self.M}
        factory = fill_factory(self.factory, values, given)
        training_points = self.training_points or automatic_training_points(nlist)
        nprobe = self.nprobe
        if factory != self.factory:
            if count < MIN_TRAINED_VECTORS and self.nlist is None:
                factory, nprobe = "Flat", None
            log.info(
                "FAISS index of %d vectors: %s%s, %d training points",
                *(count, factory, f", nprobe={nprobe or automatic_nprobe(nlist)}" if "IVF" in factory else ""),
                min(training_points, count),
            )
        return FaissSpec("FaissIndex", factory, nprobe, training_points, self.seed, self.gpu)

    def _save_proposals(self, folder: Path) -> dict[str, Any]:
        if isinstance(self._faiss, _PoolTokens):
            return {}
        return super()._save_proposals(folder) | {"tokens": self.file}

    def _restore_proposals(self, folder: Path, passages: Embeddings, state: dict[str, Any]) -> None:
        if "tokens" in state:
            super()._restore_proposals(folder, passages, state)
        else:
            self._faiss = _PoolTokens(passages)

    def _propose(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        n_passages, k = self._built.vectors.shape[:2]
        hits = min(self.hits or 2 * count, n_passages * k)
        if is_on_gpu(self._faiss):
            hits = min(hits, MAX_GPU_HITS)
        candidates, found = [], []
        for block in queries.cpu().split(max(1, BLOCK_ELEMENTS // (queries.shape[1] * hits))):
            scores, tokens = self._faiss.search(block.flatten(0, 1).contiguous().numpy(), hits)
            best, number = select_candidates(scores, tokens // k, len(block), count)  # -1 // k is -1
            candidates.append(torch.from_numpy(best))
            found.append(torch.from_numpy(number))
        return torch.cat(candidates), torch.cat(found)


class _PoolTokens:
    """Search the passage vectors like a flat FAISS index, without a float32 copy of them."""

    def __init__(self, passages: Embeddings) -> None:
        self._passages = passages

    def search(self, queries: np.ndarray, hits: int) -> tuple[np.ndarray, np.ndarray]:
        import faiss

        best = faiss.ResultHeap(len(queries), hits, keep_max=True)
        vectors = self._passages.vectors
        for start in range(0, len(vectors), PASSAGES_PER_BLOCK):
            tokens = vectors[start : start + PASSAGES_PER_BLOCK].flatten(0, 1).float().contiguous().numpy()
            scores, rows = faiss.knn(queries, tokens, min(hits, len(tokens)), metric=faiss.METRIC_INNER_PRODUCT)
            best.add_result(scores, rows + start * vectors.shape[1])
            self._passages.release()
        best.finalize()
        return best.D, best.I


def select_candidates(
    scores: np.ndarray, passages: np.ndarray, n_queries: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Select the passages hit by the vectors of each query, ordered by the sum of the gains of the query vectors.

    The gain of a query vector in a passage is the score of its best hit there minus the score of its worst hit. This orders
    passages like the sum of best hits with missing hits counted as the worst, which differs by a constant per query.

    Args:
        scores: (n_queries * Lq, h) float32 scores of the hits of each query vector, best first.
        passages: (n_queries * Lq, h) int64 passage of each hit; -1 where fewer than h were found.
        n_queries: number of queries.
        count: maximum number of candidates per query.

    Returns:
        Candidates (n_queries, count) int64, padded with -1, equal sums ordered by passage; and their number (n_queries,)
        int64.
    """
    candidates, found = np.full((n_queries, count), -1), np.zeros(n_queries, dtype=np.int64)
    of_queries = zip(np.split(scores, n_queries), np.split(passages, n_queries), strict=True)
    for query, hits in enumerate(of_queries):
        best = _select_for_query(*hits, count)
        candidates[query, : len(best)], found[query] = best, len(best)
    return candidates, found


def _select_for_query(scores: np.ndarray, passages: np.ndarray, count: int) -> np.ndarray:
    """Return the candidates of one query, at most `count`, from its hits (Lq, h)."""
    length, hits = scores.shape
    worst = np.where(passages >= 0, scores, np.inf).min(axis=1, keepdims=True)
    gains = (scores - worst).ravel()
    # Sorting one packed key of passage and position is faster than an argsort. Hits are sorted best first per vector,
    # so the first hit of a vector in a passage is its best one.
    bits = max(1, (length * hits - 1).bit_length())
    keys = (passages.astype(np.int64).ravel() << bits) | np.arange(length * hits)
    keys.sort()
    keys = keys[np.searchsorted(keys, 0) :]  # drop missing hits
    owner, position = keys >> bits, keys & ((1 << bits) - 1)
    vector = position // hits
    starts_passage = np.ones(len(keys), dtype=bool)  # True at the first hit of a passage
    starts_passage[1:] = owner[1:] != owner[:-1]
    first = starts_passage.copy()  # True at the first hit of a vector in a passage
    first[1:] |= vector[1:] != vector[:-1]
    starts = np.flatnonzero(starts_passage[first])
    owner, gain = owner[starts_passage], gains[position[first]]
    totals = np.add.reduceat(gain, starts) if len(starts) else gain
    if len(owner) > count:
        least = np.partition(totals, len(owner) - count)[len(owner) - count]
        kept = totals > least
        kept[np.flatnonzero(totals == least)[: count - np.count_nonzero(kept)]] = True
        owner, totals = owner[kept], totals[kept]
    return owner[np.argsort(-totals, kind="stable")]

"""Candidates from a FAISS index of token vectors, their order by exact MaxSim.

FAISS has no index of sets of vectors. So, as in ColBERTv2 and PLAID (Santhanam et al., 2022), every vector of every passage
goes into one index; each query vector finds its nearest ones there; the passages that own them are the candidates; and the
candidates' MaxSim scores are made from the stored vectors.
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

# Hits at a time: 2^20 of them with their sorting are about 50 MiB.
BLOCK_ELEMENTS = 1 << 20
MAX_NBITS = 16  # FAISS trains 2^nbits centroids


class FaissIndex(FaissCandidates):
    """Ranks the passages that a FAISS index of token vectors proposes, by their exact MaxSim scores.

    A query's candidates are the passages that its vectors hit, best first by the sum over the query's vectors of the best
    hit in the passage; a vector that did not hit a passage counts with its worst hit, the most that it could have scored
    there. The same pool, queries and settings give the same ranking.

    The automatic settings, and what was measured on three kinds of random pools (vectors of a passage alike, apart, or all
    pools' vectors nearly alike; 4,000 passages of 16 x 64 around 80 topics, the gold passage first for 0.2 to 0.7 of the
    queries; recall against `ExactIndex` on the worst of the three) and on pools as experiments/benchmarks makes them:

    - `candidates`: 4 top_k, at least 512. With 4-bit codes, of 20,000 passages of 32 x 128 whose vectors are near some of
      200 topics, two a passage, recall@10 was 0.947 with 256, 0.997 with 384 and 1.000 with 512; with 3,000 topics, each
      vector near another one, so that little but the gold passage stands out, 0.908, 0.955 and 0.976. A pool of no more
      passages than that is ranked as `ExactIndex` does it: all passages are candidates then, and searching for them would
      change nothing.
    - `hits`: twice the candidates. The best passages mostly hold a near neighbour of each query vector, so as many hits as
      candidates would do if each passage were hit once; twice that leaves room for several vectors of one passage.
      With 400 candidates from a `Flat` index, recall@100 was 0.91 at 256 hits, 0.97 at 512 and 0.998 at 1,024.
    - `nlist`: the power of two at or below 4 sqrt(vectors).
    - `nprobe`: 2 sqrt(nlist), at most 32. With 256 candidates and nlist=256, recall@10 was 0.960 at nprobe=8, 0.988 at 16
      and 0.998 at 32. One vector per query and passage needs more, since no other vector makes up for a list that was not
      probed.
    - a pool of fewer than 9,984 vectors, which codes and inverted lists cannot be trained on, gets none of them: a factory with
      places is replaced by `Flat` there.

    Args:
        factory: FAISS index factory string; the metric is the inner product. It may have places: `{nlist}`; `{m}` and
            `{nbits}`, or `{pq}` for both, in the layout for fast scanning where that exists (nbits=4); `{M}`. `Flat` keeps
            no vectors of its own: it reads the pool's.
        candidates: passages a query whose exact scores are made (at least top_k are).
        hits: nearest token vectors to find for each query vector.
        nlist: inverted lists (IVF).
        nprobe: inverted lists to search, for IVF indexes; more than there are means all.
        m: sub-quantizers of a product-quantised code; a divisor of the width d. None: as many as make d / 4 bytes a vector.
        nbits: bits per sub-quantizer. None: 4, for which FAISS has its fastest scan; 8 on a GPU, which has no other.
        M: links of a vector in a graph (HNSW). None: 32.
        training_points: vectors to train on.
        seed: of the sample and of k-means.
        gpu: whether FAISS runs on a GPU; None: if `device` is one, faiss-gpu is installed and it has the index.
        device: where exact scores are made, see `Index`.
        exact_fallback: see `CandidateIndex`.

    Raises:
        ConfigError: see `FaissCandidates`.
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
                f"FaissIndex: m={m} must divide the width of the vectors, {width}",
                code="faiss-m-not-divisor",
                found=m,
                width=width,
            )
        if nbits > MAX_NBITS:
            raise ConfigError(
                f"FaissIndex: nbits={nbits} must be at most {MAX_NBITS}",
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
                "index of %d vectors: %s%s, trained on %d",
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
        n_passages, k = self._passages.vectors.shape[:2]
        hits = min(self.hits or 2 * count, n_passages * k)
        if is_on_gpu(self._faiss):
            hits = min(hits, MAX_GPU_HITS)
        candidates, found = [], []
        for block in queries.cpu().split(max(1, BLOCK_ELEMENTS // (queries.shape[1] * hits))):
            scores, tokens = self._faiss.search(block.flatten(0, 1).contiguous().numpy(), hits)
            best, number = select_candidates(scores, tokens // k, len(block), count)  # FAISS's -1, for none, stays -1
            candidates.append(torch.from_numpy(best))
            found.append(torch.from_numpy(number))
        return torch.cat(candidates), torch.cat(found)


class _PoolTokens:
    """The part of a flat FAISS index that is used here, over the vectors where they are, instead of a copy in float32."""

    def __init__(self, passages: Embeddings) -> None:
        self._passages = passages

    def search(self, queries: np.ndarray, hits: int) -> tuple[np.ndarray, np.ndarray]:
        import faiss

        best = faiss.ResultHeap(len(queries), hits, keep_max=True)
        vectors = self._passages.vectors
        for start in range(0, len(vectors), PASSAGES_PER_BLOCK):
            tokens = vectors[start : start + PASSAGES_PER_BLOCK].flatten(0, 1).float().contiguous().numpy()
            scores, places = faiss.knn(queries, tokens, min(hits, len(tokens)), metric=faiss.METRIC_INNER_PRODUCT)
            best.add_result(scores, places + start * vectors.shape[1])
            self._passages.release()
        best.finalize()
        return best.D, best.I


def select_candidates(
    scores: np.ndarray, passages: np.ndarray, n_queries: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The passages that each query's vectors hit, best first by how much each vector's best hit there beats its worst hit.

    This orders as the sum of best hits does, a missing one counted as the worst, which is the same number for all passages.

    Args:
        scores: (n_queries * Lq, h) float32, the hits of each query vector, best first.
        passages: (n_queries * Lq, h) int64, the passage of each hit; -1 where fewer than h were found.
        count: candidates to return at most.

    Returns:
        (n_queries, count) int64, -1 where fewer were hit, and how many were, up to count: (n_queries,) int64. Of equal sums
        the lower passage comes first.
    """
    candidates, found = np.full((n_queries, count), -1), np.zeros(n_queries, dtype=np.int64)
    of_queries = zip(np.split(scores, n_queries), np.split(passages, n_queries), strict=True)
    for query, hits in enumerate(of_queries):
        best = _select_for_query(*hits, count)
        candidates[query, : len(best)], found[query] = best, len(best)
    return candidates, found


def _select_for_query(scores: np.ndarray, passages: np.ndarray, count: int) -> np.ndarray:
    """The (n,) passages, n at most `count`, of one query's hits (Lq, h); see `select_candidates`."""
    length, hits = scores.shape
    worst = np.where(passages >= 0, scores, np.inf).min(axis=1, keepdims=True)
    gains = (scores - worst).ravel()
    # One number a hit, its passage in front and its place behind, sorts several times as fast as numbers by a second array.
    # A vector's hits come best first, so the first of its hits in a passage is its best there.
    bits = max(1, (length * hits - 1).bit_length())
    keys = (passages.astype(np.int64).ravel() << bits) | np.arange(length * hits)
    keys.sort()
    keys = keys[np.searchsorted(keys, 0) :]  # without those that are no hits
    owner, place = keys >> bits, keys & ((1 << bits) - 1)
    vector = place // hits
    begins = np.ones(len(keys), dtype=bool)  # a passage
    begins[1:] = owner[1:] != owner[:-1]
    first = begins.copy()  # of a vector's hits in it
    first[1:] |= vector[1:] != vector[:-1]
    starts = np.flatnonzero(begins[first])
    owner, gain = owner[begins], gains[place[first]]
    totals = np.add.reduceat(gain, starts) if len(starts) else gain
    if len(owner) > count:
        least = np.partition(totals, len(owner) - count)[len(owner) - count]
        kept = totals > least
        kept[np.flatnonzero(totals == least)[: count - np.count_nonzero(kept)]] = True
        owner, totals = owner[kept], totals[kept]
    return owner[np.argsort(-totals, kind="stable")]

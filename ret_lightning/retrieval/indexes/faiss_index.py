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

from ret_lightning.errors import ConfigError
from ret_lightning.retrieval.indexes.base import at_least_one
from ret_lightning.retrieval.indexes.faiss_build import (
    MOST_HITS_ON_A_GPU,
    PASSAGES_A_BLOCK,
    Recipe,
    build_faiss,
    goes_on_gpu,
    is_on_gpu,
)
from ret_lightning.retrieval.indexes.faiss_candidates import FaissCandidates
from ret_lightning.retrieval.indexes.faiss_defaults import (
    SMALLEST_TRAINED,
    automatic_cells,
    automatic_codes,
    automatic_probes,
    automatic_sample,
    filled_in,
)
from ret_lightning.retrieval.store.embeddings import Embeddings

log = logging.getLogger(__name__)

# Hits at a time: 2^20 of them with their sorting are about 50 MiB.
BLOCK_ELEMENTS = 1 << 20
MOST_BITS = 16  # of a number in a code: FAISS trains 2^bits centroids


class FaissIndex(FaissCandidates):
    """Ranks the passages that a FAISS index of token vectors proposes, by their exact MaxSim scores.

    A query's candidates are the passages that its vectors hit, best first by the sum over the query's vectors of the best
    hit in the passage; a vector that did not hit a passage counts with its worst hit, the most that it could have scored
    there. The same pool, queries and settings give the same ranking.

    The automatic settings, and what was measured on three kinds of random pools (vectors of a passage alike, apart, or all
    pools' vectors nearly alike; 4,000 passages of 16 x 64 around 80 topics, the gold passage first for 0.2 to 0.7 of the
    queries; agreement with `ExactIndex` on the worst of the three) and on pools as experiments/benchmarks makes them:

    - `candidates`: 4 top_k, at least 512. With 4-bit codes, of 20,000 passages of 32 x 128 whose vectors are near some of
      200 topics, two a passage, agreement@10 was 0.947 with 256, 0.997 with 384 and 1.000 with 512; with 3,000 topics, each
      vector near another one, so that little but the gold passage stands out, 0.908, 0.955 and 0.976. A pool of no more
      passages than that is ranked as `ExactIndex` does it: all passages are candidates then, and searching for them would
      change nothing.
    - `hits`: twice the candidates. The best passages mostly hold a near neighbour of each query vector, so as many hits as
      candidates would do if each passage were hit once; twice that leaves room for several vectors of one passage.
      With 400 candidates from a `Flat` index, agreement@100 was 0.91 at 256 hits, 0.97 at 512 and 0.998 at 1,024.
    - `cells`: the power of two at or below 4 sqrt(vectors).
    - `probes`: 2 sqrt(cells), at most 32. With 256 candidates from 256 cells, agreement@10 was 0.960 at 8 probes, 0.988 at 16
      and 0.998 at 32. One vector a query and passage needs more, since no other vector makes up for a cell that was not
      probed.
    - a pool of fewer than 9,984 vectors, which codes and cells cannot be trained on, gets no cells or codes: a factory with
      places is replaced by `Flat` there.

    Args:
        factory: FAISS index factory string; the metric is the inner product. It may have places: `{cells}`; `{codes}` and
            `{bits}`, or `{pq}` for both, in the layout for fast scanning where that exists (4 bits); `{links}`. `Flat` keeps
            no vectors of its own: it reads the pool's.
        candidates: passages a query whose exact scores are made (at least top_k are).
        hits: nearest token vectors to find for each query vector.
        cells: of an inverted file.
        probes: cells to search, for indexes with cells; more than there are means all.
        codes: numbers in a vector's product-quantised code; they must divide the width d. None: d / 4 bytes a vector.
        bits: of each such number. None: 4, for which FAISS has its fastest scan; 8 on a GPU, which has no other.
        links: of a vector in a graph (HNSW).
        sample: vectors to train on.
        seed: of the sample and of k-means.
        gpu: whether FAISS runs on a GPU; None: if `device` is one, faiss-gpu is installed and it has the index.
        device: where exact scores are made, see `Index`.
        exact_fallback: see `CandidateIndex`.

    Raises:
        ConfigError: see `FaissCandidates`.
    """

    file = "tokens.faiss"

    def __init__(
        self,
        factory: str = "Flat",
        candidates: int | None = None,
        hits: int | None = None,
        cells: int | None = None,
        probes: int | None = None,
        codes: int | None = None,
        bits: int | None = None,
        links: int | None = None,
        sample: int | None = None,
        seed: int = 0,
        gpu: bool | None = None,
        device: str | torch.device | None = None,
        exact_fallback: bool = True,
    ) -> None:
        super().__init__(factory, candidates, cells, probes, sample, seed, gpu, device, exact_fallback)
        at_least_one(self, hits=hits, codes=codes, bits=bits, links=links)
        self.hits = hits
        self.codes = codes
        self.bits = bits
        self.links = links

    def _build_proposals(self, passages: Embeddings) -> None:
        k, width = passages.vectors.shape[1:]
        device = self.device or passages.vectors.device
        on_gpu = goes_on_gpu(self.gpu, device)
        recipe = self._recipe(len(passages) * k, width, on_gpu)
        if recipe.factory == "Flat" and recipe.probes is None and not on_gpu and not passages.vectors.is_cuda:
            self._faiss = _PoolsOwnTokens(passages)
            return

        def tokens(vectors: Tensor) -> Tensor:
            return vectors.flatten(0, 1).to("cpu", torch.float32).contiguous()

        self._faiss = build_faiss(recipe, passages, width, k, tokens, device)

    def _recipe(self, count: int, width: int, on_gpu: bool) -> Recipe:
        cells = self.cells or automatic_cells(count)
        bits = self.bits or (8 if on_gpu else 4)
        codes = self.codes or automatic_codes(width, bits)
        values = {
            "cells": cells,
            "codes": codes,
            "bits": bits,
            "pq": f"PQ{codes}x4fs" if bits == 4 and not on_gpu else f"PQ{codes}x{bits}",
            "links": self.links or 32,
        }
        if width % codes:
            raise ConfigError(
                f"FaissIndex: codes={codes} must divide the width of the vectors, {width}",
                code="faiss-codes-not-divisor",
                found=codes,
                width=width,
            )
        if bits > MOST_BITS:
            raise ConfigError(
                f"FaissIndex: bits={bits} must be at most {MOST_BITS}",
                code="faiss-bits-too-many",
                found=bits,
                most=MOST_BITS,
            )
        given = {"cells": self.cells, "codes": self.codes, "bits": self.bits, "links": self.links}
        factory, sample = filled_in(self.factory, values, given), self.sample or automatic_sample(cells)
        probes = self.probes
        if factory != self.factory:
            if count < SMALLEST_TRAINED and self.cells is None:
                factory, probes = "Flat", None
            log.info(
                "index of %d vectors: %s%s, trained on %d",
                *(count, factory, f", {probes or automatic_probes(cells)} probes" if "IVF" in factory else ""),
                min(sample, count),
            )
        return Recipe("FaissIndex", factory, probes, sample, self.seed, self.gpu)

    def _save_proposals(self, folder: Path) -> dict[str, Any]:
        if isinstance(self._faiss, _PoolsOwnTokens):
            return {}
        return super()._save_proposals(folder) | {"tokens": self.file}

    def _restore_proposals(self, folder: Path, passages: Embeddings, state: dict[str, Any]) -> None:
        if "tokens" in state:
            super()._restore_proposals(folder, passages, state)
        else:
            self._faiss = _PoolsOwnTokens(passages)

    def _propose(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        n_passages, k = self._passages.vectors.shape[:2]
        hits = min(self.hits or 2 * count, n_passages * k)
        if is_on_gpu(self._faiss):
            hits = min(hits, MOST_HITS_ON_A_GPU)
        candidates, found = [], []
        for block in queries.cpu().split(max(1, BLOCK_ELEMENTS // (queries.shape[1] * hits))):
            scores, tokens = self._faiss.search(block.flatten(0, 1).contiguous().numpy(), hits)
            best, number = best_candidates(scores, tokens // k, len(block), count)  # FAISS's -1, for none, stays -1
            candidates.append(torch.from_numpy(best))
            found.append(torch.from_numpy(number))
        return torch.cat(candidates), torch.cat(found)


class _PoolsOwnTokens:
    """The part of a flat FAISS index that is used here, over the vectors where they are, instead of a copy in float32."""

    def __init__(self, passages: Embeddings) -> None:
        self._passages = passages

    def search(self, queries: np.ndarray, hits: int) -> tuple[np.ndarray, np.ndarray]:
        import faiss

        best = faiss.ResultHeap(len(queries), hits, keep_max=True)
        vectors = self._passages.vectors
        for start in range(0, len(vectors), PASSAGES_A_BLOCK):
            tokens = vectors[start : start + PASSAGES_A_BLOCK].flatten(0, 1).float().contiguous().numpy()
            scores, places = faiss.knn(queries, tokens, min(hits, len(tokens)), metric=faiss.METRIC_INNER_PRODUCT)
            best.add_result(scores, places + start * vectors.shape[1])
            self._passages.release()
        best.finalize()
        return best.D, best.I


def best_candidates(
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
        best = _best_of_query(*hits, count)
        candidates[query, : len(best)], found[query] = best, len(best)
    return candidates, found


def _best_of_query(scores: np.ndarray, passages: np.ndarray, count: int) -> np.ndarray:
    """The (n,) passages, n at most `count`, of one query's hits (Lq, h); see `best_candidates`."""
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

"""Candidates from a FAISS index of token vectors, their order by exact MaxSim.

FAISS has no index of sets of vectors. So, as in ColBERTv2 and PLAID (Santhanam et al., 2022), every vector of every passage
goes into one index; each query vector finds its nearest ones there; the passages that own them are the candidates; and the
candidates' MaxSim scores are made from the stored vectors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ret_lightning.errors import ConfigError
from ret_lightning.retrieval.index import ExactIndex, Index, order_candidates
from ret_lightning.retrieval.ranking import top_columns
from ret_lightning.retrieval.store import Embeddings

if TYPE_CHECKING:
    import faiss

# Hits, and sums a passage, at a time: 2^22 of them with their sorting are about 200 MiB.
BLOCK_ELEMENTS = 1 << 22

# On a command line a comma means a sweep, unless the value is in quotes of its own.
FACTORY_EXAMPLES = (
    "for example 'Flat', 'IVF64,Flat', 'IVF64,SQfp16', 'IVF64,PQ16' or 'HNSW32' "
    "(with a comma, on a command line: 'retrieval.factory=\"IVF64,Flat\"')"
)


class FaissIndex(Index):
    """Ranks the passages that a FAISS index of token vectors proposes, by their exact MaxSim scores.

    A query's candidates are the passages that its vectors hit, best first by the sum over the query's vectors of the best
    hit in the passage; a vector that did not hit a passage counts with its worst hit, the most that it could have scored
    there. Whatever the settings, a ranking is full: a query that hits fewer than top_k passages is ranked as `ExactIndex`
    does it. The same pool, queries and settings give the same ranking.

    The automatic settings, and what was measured on three kinds of random pools (vectors of a passage alike, apart, or all
    pools' vectors nearly alike; 4,000 passages of 16 x 64 around 80 topics, the gold passage first for 0.2 to 0.7 of the
    queries). Figures are agreement with `ExactIndex` on the worst of the three:

    - `candidates`: 4 top_k, at least 256. A pool of no more passages than that is ranked as `ExactIndex` does it: all
      passages are candidates then, and searching for them would change nothing.
    - `hits`: twice the candidates. The best passages mostly hold a near neighbour of each query vector, so as many hits as
      candidates would do if each passage were hit once; twice that leaves room for several vectors of one passage.
      With 400 candidates from a `Flat` index, agreement@100 was 0.91 at 256 hits, 0.97 at 512 and 0.998 at 1,024.
    - `probes`: 2 sqrt(cells). With 256 candidates from 256 cells, agreement@10 was 0.960 at 8 probes, 0.988 at 16 and 0.998
      at 32. One vector a query and passage needs more, since no other vector makes up for a cell that was not probed.

    Args:
        factory: FAISS index factory string; the metric is the inner product.
        candidates: passages a query whose exact scores are made (at least top_k are).
        hits: nearest token vectors to find for each query vector.
        probes: cells to search, for IVF indexes; more than there are means all.
        device: where exact scores are made, see `Index`. FAISS itself runs on the CPU.

    Raises:
        ConfigError: if a number is below 1. `build` raises it if FAISS refuses the factory string, if the index needs more
            vectors than the pool has, or if `probes` is given for an index without cells.
    """

    def __init__(
        self,
        factory: str = "Flat",
        candidates: int | None = None,
        hits: int | None = None,
        probes: int | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        super().__init__(device)
        for name, value in (("candidates", candidates), ("hits", hits), ("probes", probes)):
            if value is not None and value < 1:
                raise ConfigError(f"FaissIndex: {name} must be at least 1, or null for automatic; got {value}")
        self.factory = factory
        self.candidates = candidates
        self.hits = hits
        self.probes = probes
        self._exact = ExactIndex(device)
        self._tokens: faiss.Index | None = None

    def _build(self, passages: Embeddings) -> None:
        self._tokens = _token_index(passages.vectors, self.factory, self.probes)
        self._exact.build(passages)

    def _search(self, queries: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
        vectors = self._passages.vectors
        count = max(self.candidates or max(256, 4 * top_k), top_k)
        if len(vectors) <= count:
            ranking = self._exact.search(queries, top_k)
            return ranking.rows, ranking.scores
        candidates, found = self._candidates(queries, count)
        rows, scores = order_candidates(queries, vectors, candidates, top_k)
        short = found < top_k
        if short.any():
            ranking = self._exact.search(queries[short], top_k)
            rows[short], scores[short] = ranking.rows.to(rows.device), ranking.scores.to(scores.device)
        return rows, scores

    def _candidates(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """(Nq, count) rows of the pool, and (Nq,) how many passages were hit; rows beyond those are the lowest others."""
        n_passages, k, _ = self._passages.vectors.shape
        hits = min(self.hits or 2 * count, n_passages * k)
        queries_at_a_time = max(1, BLOCK_ELEMENTS // max(queries.shape[1] * hits, n_passages))
        candidates, found = [], []
        for block in queries.cpu().split(queries_at_a_time):
            scores, tokens = self._tokens.search(block.flatten(0, 1).contiguous().numpy(), hits)
            passages = torch.from_numpy(tokens) // k  # FAISS fills up with token -1, which stays -1
            totals = sum_best_hits(torch.from_numpy(scores), passages, len(block), n_passages)
            candidates.append(top_columns(totals, count))
            found.append((totals >= 0).sum(dim=1))
        return torch.cat(candidates).to(queries.device), torch.cat(found).to(queries.device)


def sum_best_hits(scores: Tensor, passages: Tensor, n_queries: int, n_passages: int) -> Tensor:
    """Adds up, for each query and passage, by how much each query vector's best hit there beats its worst hit anywhere.

    This is the sum of best hits, a missing one counted as the worst, less a number that is the same for all passages.

    Args:
        scores: (n_queries * Lq, h) float32, the hits of each query vector, best first.
        passages: (n_queries * Lq, h) int64, the passage of each hit; -1 where fewer than h were found.

    Returns:
        (n_queries, n_passages) float32, at least 0 where a passage was hit and -1 where it was not.
    """
    passages, order = passages.sort(dim=1, stable=True)  # stable: a passage's best hit stays its first
    scores = scores.gather(1, order)
    is_hit = passages >= 0
    is_best = is_hit.clone()
    is_best[:, 1:] &= passages[:, 1:] != passages[:, :-1]
    worst = scores.masked_fill(~is_hit, torch.inf).amin(dim=1, keepdim=True)
    gain = (scores - worst).masked_fill(~is_best, 0).view(n_queries, -1)
    column = passages.where(is_hit, n_passages).view(n_queries, -1)  # one column more takes what is no hit
    totals = torch.zeros(n_queries, n_passages + 1).scatter_add_(1, column, gain)
    was_hit = torch.zeros(n_queries, n_passages + 1, dtype=torch.bool).scatter_(1, column, True)
    return totals.masked_fill_(~was_hit, -1)[:, :n_passages]


def _token_index(vectors: Tensor, factory: str, probes: int | None) -> faiss.Index:
    import faiss

    tokens = vectors.flatten(0, 1).to("cpu", torch.float32).contiguous().numpy()
    count, width = tokens.shape
    shape = f"{len(vectors)} passages x {vectors.shape[1]} vectors"
    try:
        index = faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ConfigError(
            f"FaissIndex: FAISS has no index {factory!r} for vectors of width {width} and inner products "
            f"({_reason(error)}); choose {FACTORY_EXAMPLES}"
        ) from None
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is None and probes is not None:
        raise ConfigError(
            f"FaissIndex: probes={probes} is for indexes with cells, and {factory!r} has none; leave it out, or use "
            "an IVF factory such as 'IVF64,Flat'"
        )
    if ivf is not None:
        if not 1 <= ivf.nlist <= count:
            raise ConfigError(
                f"FaissIndex: {factory!r} asks for {ivf.nlist} cells, and the pool has {count} vectors ({shape}); "
                f"use 1 to {count} cells, or 'Flat'"
            )
        ivf.nprobe = min(probes or math.ceil(2 * math.sqrt(ivf.nlist)), ivf.nlist)
        # FAISS wants 39 vectors a cell or prints a warning, which every subset would repeat after every epoch.
        ivf.cp.min_points_per_centroid = 1
    try:
        with _one_thread(faiss, factory):
            index.train(tokens)
            index.add(tokens)
    except RuntimeError as error:
        raise ConfigError(
            f"FaissIndex: {factory!r} cannot be built from {count} vectors of width {width} ({shape}): "
            f"{_reason(error)}; choose {FACTORY_EXAMPLES}"
        ) from None
    return index


@contextmanager
def _one_thread(faiss, factory: str) -> Iterator[None]:
    """Graphs (HNSW, NSG) come out differently each time that several threads add to them."""
    threads = faiss.omp_get_max_threads()
    if re.search("HNSW|NSG", factory):
        faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


def _reason(error: RuntimeError) -> str:
    """FAISS's message without the C++ function and source line in front of it."""
    return re.sub(r"^Error in .* at \S+:\d+: ", "", str(error), flags=re.DOTALL).strip()

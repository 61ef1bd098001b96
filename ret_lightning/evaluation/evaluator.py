"""Retrieval evaluation from plain objects: encode subsets, rank each pool for its queries, and compute the metrics."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ret_lightning.config.targets.renamed_keys import RENAMED_KEYS, accept_renamed
from ret_lightning.data.bad_rows import OnBadRow
from ret_lightning.data.images.sources import ImageReader, image_source
from ret_lightning.data.torch_datasets import EvaluationRows
from ret_lightning.data.types import SIDES, EvaluationSubset
from ret_lightning.distributed.collectives import rank, world_size
from ret_lightning.errors import ConfigError
from ret_lightning.evaluation.embedding_sink import EmbeddingSink, EncodedSubset, MemorySink
from ret_lightning.evaluation.encode_rows import encode_rows
from ret_lightning.evaluation.evaluation_result import EvaluationResult, SubsetResult
from ret_lightning.models.two_towers import TwoTowers
from ret_lightning.retrieval import (
    ExactIndex,
    Index,
    Ranking,
    compare_rankings,
    count_positives,
    draw_sample,
    judge,
    query_means,
    random_recall,
    search_replicated,
    search_sharded,
)
from ret_lightning.retrieval.metrics.ann_recall import FALLBACK_SHARE, short_share, without_fallback
from ret_lightning.retrieval.metrics.per_query import TOP

log = logging.getLogger(__name__)


class Evaluator:
    """Ranks each subset's pool for its queries, and computes recall, MRR and nDCG.

        retriever = RetRetriever.from_pretrained(folder)
        subset = EvaluationSubset("mine", "test", queries, passages)      # lists of Query and Passage
        result = Evaluator(ExactIndex()).evaluate(retriever, [subset], images="images")
        print(result.metrics["mine/recall@5"])

    Where torch.distributed is in use, all ranks call the methods together, and each gets the result. Exact search is sharded
    then: each rank searches its share of the passages, for all queries. An approximate index is whole on each rank, which
    searches for its share of the queries; it is measured against exact search on a sample of each subset's queries.

    Args:
        index: searched for each subset in turn; None: exact search.
        recall_at: the K of the three kinds of recall.
        ranked: passages per query in the rankings, at least the largest K, 10 of MRR and nDCG included.
        ann_recall_sample: queries per subset on which an approximate index is measured, the same ones every time; 0: none.

    Raises:
        ConfigError: if the settings contradict each other.
    """

    @accept_renamed(RENAMED_KEYS["ret_lightning.evaluation.RetrievalEvaluation"])
    def __init__(
        self,
        index: Index | None = None,
        recall_at: Sequence[int] = (1, 2, 3, 5, 10, 50, 100),
        ranked: int = 500,
        ann_recall_sample: int = 64,
    ) -> None:
        if not recall_at or min(recall_at) < 1:
            raise ConfigError(
                f"evaluation.recall_at={list(recall_at)} needs at least one K, each 1 or more",
                code="evaluation-recall-at",
                found=tuple(recall_at),
            )
        if ranked < max([TOP, *recall_at]):
            raise ConfigError(
                f"evaluation.ranked={ranked} is less than the largest K of evaluation.recall_at, MRR@{TOP} and nDCG@{TOP}, "
                f"{max([TOP, *recall_at])}",
                code="evaluation-ranked",
                found=ranked,
                least=max([TOP, *recall_at]),
            )
        if ann_recall_sample < 0:
            raise ConfigError(
                f"evaluation.ann_recall_sample={ann_recall_sample} is below 0; 0 leaves the measurement out",
                code="evaluation-ann-recall-sample",
                found=ann_recall_sample,
            )
        self.index = ExactIndex() if index is None else index
        self.recall_at = sorted(set(recall_at))
        self.ranked = ranked
        self.ann_recall_sample = ann_recall_sample if self.index.approximate else 0
        self._warned: set[tuple[str, str]] = set()  # splits and subsets with too few candidates

    def evaluate(
        self,
        retriever: TwoTowers,
        subsets: Sequence[EvaluationSubset],
        images: str | Path | Sequence[str] | None = None,
        sink: EmbeddingSink | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        dtype: str | None = None,
        limit: int | float | None = None,
        on_bad_row: OnBadRow = "raise",
        max_bad_fraction: float = 0.01,
        progress: bool = True,
    ) -> EvaluationResult:
        """Encode subsets, and score them.

        Args:
            retriever: on the device to encode on; it is in eval mode meanwhile.
            subsets: of one split, with different names.
            images: what image paths are relative to: a folder, an archive, or several (`image_source`); None: the
                current folder.
            sink: where the vectors go; None: into memory. A `StoredSink` keeps them on disk, and continues there after an
                interruption.
            batch_size: rows per batch.
            num_workers: processes that decode images while the model runs; 0: this one does it.
            dtype: what to compute in (autocast); None: float32, or as the weights are.
            limit: encode the first so many batches of each file, or that share of them; None: all.
            on_bad_row: what to do with a row whose image cannot be read: `raise`, or `skip`, which encodes it without.
            max_bad_fraction: largest share of the rows of a file that may lack their image.
            progress: whether to show bars.

        Raises:
            DataError: naming the row, if an image is missing or vectors are not finite.
            ConfigError: if the limit leaves nothing.
        """
        sink = MemorySink() if sink is None else sink
        source = image_source("" if images is None else images)
        files = [
            EvaluationRows(
                subset.rows(side),
                ImageReader(source, getattr(retriever, f"{side}_tower").image_transform),
                subset.name,
                side,
                on_bad_row,
            )
            for subset in subsets
            for side in SIDES
        ]
        started, was_training = time.perf_counter(), retriever.training
        retriever.eval()
        try:
            for rows, batches in zip(files, sink.begin(files, batch_size, limit), strict=True):
                for batch, vectors in encode_rows(
                    retriever, rows, batches, num_workers=num_workers, dtype=dtype, progress=progress
                ):
                    sink.add(batch, vectors)
        finally:
            retriever.train(was_training)
        device = retriever.query_tower.start.device
        sink.complete(subsets, device, max_bad_fraction)
        encode = time.perf_counter() - started
        result = self.score(subsets, sink, device)
        return replace(result, seconds={"encode": encode, **result.seconds})

    def score(
        self, subsets: Sequence[EvaluationSubset], sink: EmbeddingSink, device: torch.device, tried: bool = False
    ) -> EvaluationResult:
        """Index, search and score what was encoded.

        Args:
            subsets: of one split.
            sink: completed.
            device: that collectives run on; an index without a device of its own searches there if it is a GPU.
            tried: whether it is a sanity check, which logs nothing.
        """
        if self.index.device is None and device.type == "cuda":
            self.index.device = device
        seconds = {"build": 0.0, "search": 0.0} | ({"ann_recall": 0.0} if self.ann_recall_sample else {})
        # Every rank goes through the subsets in the same order: there are collectives inside.
        results = {subset.name: self._subset(subset, sink, device, seconds, tried) for subset in subsets}
        return EvaluationResult(results, seconds)

    def _subset(
        self,
        subset: EvaluationSubset,
        sink: EmbeddingSink,
        device: torch.device,
        seconds: dict[str, float],
        tried: bool,
    ) -> SubsetResult:
        encoded = sink.encoded(subset, device)
        if len(encoded.pool_rows) < len(subset.pool) and not tried:
            log.warning(
                "%s/%s: only %d of %d passages were encoded (trainer.limit_%s_batches): recall is higher than it would be",
                *(subset.split, subset.name, len(encoded.pool_rows), len(subset.pool), subset.split),
            )
        start = time.perf_counter()
        if self.index.shardable:
            built = start
            ranking = self._sharded(self.index, encoded, encoded.queries, device)
            self.index.clear()  # so that training has its memory
            unaided = None
        else:
            index = encoded.index_of_all(self.index)
            built = time.perf_counter()
            ranking = search_replicated(index, encoded.queries, self.ranked, device)
            unaided = self._unaided(index, ranking, encoded.queries, device)
            index.clear()
            self._warn_of_fallback(subset, ranking, tried)
        result = self._scored(subset, encoded, ranking, device)
        searched = time.perf_counter()
        seconds["build"] += built - start
        seconds["search"] += searched - built
        if not result.query_rows:
            return result
        measured = {} if ranking.short is None else {FALLBACK_SHARE: short_share(ranking)}
        if self.ann_recall_sample:
            measured |= self._ann_recall(result, unaided, encoded, device)
            seconds["ann_recall"] += time.perf_counter() - searched
        return replace(result, ann_recall=measured)

    def _unaided(self, index: Index, ranking: Ranking, queries: Tensor, device: torch.device) -> Tensor | None:
        """The rows of the sampled queries' rankings without the exact fallback; None of an index that has none."""
        if not self.ann_recall_sample or ranking.short is None or not len(queries):
            return None
        drawn = self._sample(len(queries))
        if not ranking.short[drawn].any():
            return ranking.rows[drawn]
        return search_replicated(index, queries[drawn], self.ranked, device, fallback=False).rows

    def _sample(self, count: int) -> Tensor:
        return draw_sample(count, self.ann_recall_sample, seed=0)

    def _warn_of_fallback(self, subset: EvaluationSubset, ranking: Ranking, tried: bool) -> None:
        short = 0 if ranking.short is None else int(ranking.short.sum())
        key = subset.split, subset.name
        if not short or tried or rank() != 0 or key in self._warned:
            return
        self._warned.add(key)
        exact = getattr(self.index, "exact_fallback", False)
        log.warning(
            "%s/%s: the index found fewer than %d candidates for %d of %d queries (%.1f %%), %s; raise retrieval.nprobe, "
            "retrieval.hits or retrieval.candidates, or lower evaluation.ranked",
            *(*key, self.ranked, short, len(ranking), 100 * short / len(ranking)),
            "which were ranked exactly (retrieval.exact_fallback=false turns that off)"
            if exact
            else "whose rankings are shorter",
        )

    def _sharded(self, index: Index, encoded: EncodedSubset, queries: Tensor, device: torch.device) -> Ranking:
        return search_sharded(index, encoded.share, encoded.positions, queries, self.ranked, device)

    def _ann_recall(
        self, result: SubsetResult, unaided: Tensor | None, encoded: EncodedSubset, device: torch.device
    ) -> dict[str, float]:
        """The ranking, and the one without the exact fallback, against exact search, which is sharded here as everywhere."""
        drawn = self._sample(len(result.query_rows))
        exact = self._sharded(ExactIndex(self.index.device), encoded, encoded.queries[drawn], device)
        positives = [result.subset.queries[result.query_rows[row]].passage_ids for row in drawn.tolist()]
        pool_ids = [result.subset.pool[row].passage_id for row in result.indexed_rows]
        own = pool_ids, positives, min(10, self.ranked), self.recall_at
        compared = compare_rankings(result.ranking.rows[drawn], exact.rows, *own)
        return compared if unaided is None else compared | without_fallback(compare_rankings(unaided, exact.rows, *own))

    def _scored(
        self, subset: EvaluationSubset, encoded: EncodedSubset, ranking: Ranking, device: torch.device
    ) -> SubsetResult:
        query_rows, indexed_rows = encoded.query_rows.tolist(), encoded.pool_rows.tolist()
        queries, passages = [subset.queries[row] for row in query_rows], [subset.pool[row] for row in indexed_rows]
        positives, ids = [query.passage_ids for query in queries], [passage.passage_id for passage in passages]
        answers, texts = [query.answers for query in queries], [passage.text for passage in passages]
        # Ranks exchange what they found, which NCCL does between GPUs only; alone, the CPU is quicker.
        where = device if world_size() > 1 else "cpu"
        by_query = judge(ranking, ids, positives, self.recall_at, texts, answers, where)
        reachable = count_positives(ids, positives)
        random = {k: random_recall(len(ids), reachable, k) for k in self.recall_at}
        return SubsetResult(subset, query_rows, indexed_rows, ranking, by_query, query_means(by_query), random)

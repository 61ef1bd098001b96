"""Evaluate retrieval from plain objects: encode subsets, rank each candidate pool, and compute the metrics."""

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
    evaluate_ranking,
    query_means,
    random_recall,
    sample_queries,
    search_replicated,
    search_sharded,
)
from ret_lightning.retrieval.metrics.ann_recall import FALLBACK_SHARE, short_share, without_fallback
from ret_lightning.retrieval.metrics.per_query import TOP

log = logging.getLogger(__name__)


class Evaluator:
    """Ranks the candidate pool of each subset for its queries, and computes recall, MRR and nDCG.

        retriever = RetRetriever.from_pretrained(folder)
        subset = EvaluationSubset("mine", "test", queries, passages)      # lists of Query and Passage
        result = Evaluator(ExactIndex()).evaluate(retriever, [subset], images="images")
        print(result.metrics["mine/recall@5"])

    With torch.distributed, all ranks call the methods together, and each rank gets the result. Exact search is sharded:
    each rank searches its share of the passages for all queries. An approximate index is replicated: each rank holds
    the whole index and searches it for its share of the queries. It is compared with exact search on a sample of each
    subset's queries.

    Args:
        index: the index, built for each subset in turn; None uses exact search.
        recall_at: the values of K for the three kinds of recall.
        ranked: number of passages per query in the rankings, at least the largest K and the 10 of MRR and nDCG.
        ann_recall_sample: number of queries per subset on which an approximate index is compared with exact search, the
            same ones in every evaluation; 0 disables the comparison.

    Raises:
        ConfigError: if a setting is out of range, or settings contradict each other.
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
                f"evaluation.recall_at: expected at least one K, each 1 or more, got {list(recall_at)}",
                code="evaluation-recall-at",
                found=tuple(recall_at),
            )
        if ranked < max([TOP, *recall_at]):
            raise ConfigError(
                f"evaluation.ranked: expected {max([TOP, *recall_at])} or more (the largest K of evaluation.recall_at, "
                f"MRR@{TOP} and nDCG@{TOP}), got {ranked}",
                code="evaluation-ranked",
                found=ranked,
                least=max([TOP, *recall_at]),
            )
        if ann_recall_sample < 0:
            raise ConfigError(
                f"evaluation.ann_recall_sample: expected 1 or more, or 0 to skip the comparison, got {ann_recall_sample}",
                code="evaluation-ann-recall-sample",
                found=ann_recall_sample,
            )
        self.index = ExactIndex() if index is None else index
        self.recall_at = sorted(set(recall_at))
        self.ranked = ranked
        self.ann_recall_sample = ann_recall_sample if self.index.approximate else 0
        self._warned: set[tuple[str, str]] = set()  # splits and subsets for which _warn_of_fallback has warned

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
        """Encode subsets and score them.

        Args:
            retriever: the model, on the device to encode on; it is set to eval mode during the evaluation.
            subsets: subsets of one split, with distinct names.
            images: folder or archive that image paths are relative to, or several of them (see `image_source`); None
                uses the current folder.
            sink: storage of the vectors; None keeps them in memory. A `StoredSink` keeps them on disk, and resumes an
                interrupted evaluation.
            batch_size: number of rows per batch.
            num_workers: number of processes that decode images; 0 decodes in the current process.
            dtype: name of the autocast dtype, for example `bfloat16`; None disables autocast.
            limit: number or fraction of the batches of each file to encode; None means all.
            on_bad_row: what to do with a row whose image cannot be read: `raise` an error, or `skip` the image and
                encode the row without it.
            max_bad_fraction: maximum fraction of the rows of a file whose image cannot be read.
            progress: whether to display progress bars.

        Returns:
            The results of all subsets.

        Raises:
            DataError: if an image cannot be read or vectors are not finite; the error has the location of the row.
            ConfigError: if the limit is less than one batch of a file.
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
        self,
        subsets: Sequence[EvaluationSubset],
        sink: EmbeddingSink,
        device: torch.device,
        is_sanity_check: bool = False,
    ) -> EvaluationResult:
        """Index, search and score encoded subsets.

        Args:
            subsets: subsets of one split.
            sink: the completed sink with their vectors.
            device: the device of the collectives; if it is a GPU, an index without a device searches on it.
            is_sanity_check: whether this is a sanity check, which logs nothing.

        Returns:
            The results of all subsets.
        """
        if self.index.device is None and device.type == "cuda":
            self.index.device = device
        seconds = {"build": 0.0, "search": 0.0} | ({"ann_recall": 0.0} if self.ann_recall_sample else {})
        # All ranks process the subsets in the same order: the evaluation of a subset runs collectives.
        results = {
            subset.name: self._evaluate_subset(subset, sink, device, seconds, is_sanity_check) for subset in subsets
        }
        return EvaluationResult(results, seconds)

    def _evaluate_subset(
        self,
        subset: EvaluationSubset,
        sink: EmbeddingSink,
        device: torch.device,
        seconds: dict[str, float],
        is_sanity_check: bool,
    ) -> SubsetResult:
        encoded = sink.get_encoded(subset, device)
        if len(encoded.pool_rows) < len(subset.pool) and not is_sanity_check:
            log.warning(
                "%s/%s: only %d of %d passages were encoded (trainer.limit_%s_batches); recall is overestimated",
                *(subset.split, subset.name, len(encoded.pool_rows), len(subset.pool), subset.split),
            )
        start = time.perf_counter()
        if self.index.shardable:
            built = start
            ranking = self._search_sharded(self.index, encoded, encoded.queries, device)
            self.index.clear()  # frees memory for training
            rows_without_fallback = None
        else:
            index = encoded.build_full_index(self.index)
            built = time.perf_counter()
            ranking = search_replicated(index, encoded.queries, self.ranked, device)
            rows_without_fallback = self._rank_without_fallback(index, ranking, encoded.queries, device)
            index.clear()
            self._warn_of_fallback(subset, ranking, is_sanity_check)
        result = self._compute_metrics(subset, encoded, ranking, device)
        searched = time.perf_counter()
        seconds["build"] += built - start
        seconds["search"] += searched - built
        if not result.query_rows:
            return result
        measured = {} if ranking.short is None else {FALLBACK_SHARE: short_share(ranking)}
        if self.ann_recall_sample:
            measured |= self._measure_ann_recall(result, rows_without_fallback, encoded, device)
            seconds["ann_recall"] += time.perf_counter() - searched
        return replace(result, ann_recall=measured)

    def _rank_without_fallback(
        self, index: Index, ranking: Ranking, queries: Tensor, device: torch.device
    ) -> Tensor | None:
        """Rank the sampled queries without the exact fallback; return None if the index has no fallback."""
        if not self.ann_recall_sample or ranking.short is None or not len(queries):
            return None
        sampled = self._sample_queries(len(queries))
        if not ranking.short[sampled].any():
            return ranking.rows[sampled]
        return search_replicated(index, queries[sampled], self.ranked, device, fallback=False).rows

    def _sample_queries(self, count: int) -> Tensor:
        return sample_queries(count, self.ann_recall_sample, seed=0)

    def _warn_of_fallback(self, subset: EvaluationSubset, ranking: Ranking, is_sanity_check: bool) -> None:
        short = 0 if ranking.short is None else int(ranking.short.sum())
        key = subset.split, subset.name
        if not short or is_sanity_check or rank() != 0 or key in self._warned:
            return
        self._warned.add(key)
        exact = getattr(self.index, "exact_fallback", False)
        log.warning(
            "%s/%s: the index found fewer than %d candidates for %d of %d queries (%.1f %%), %s; raise retrieval.nprobe, "
            "retrieval.hits or retrieval.candidates, or lower evaluation.ranked",
            *(*key, self.ranked, short, len(ranking), 100 * short / len(ranking)),
            "which were ranked by exact search (disable with retrieval.exact_fallback=false)"
            if exact
            else "whose rankings are incomplete",
        )

    def _search_sharded(self, index: Index, encoded: EncodedSubset, queries: Tensor, device: torch.device) -> Ranking:
        return search_sharded(index, encoded.share, encoded.positions, queries, self.ranked, device)

    def _measure_ann_recall(
        self, result: SubsetResult, rows_without_fallback: Tensor | None, encoded: EncodedSubset, device: torch.device
    ) -> dict[str, float]:
        """Compare the rankings with and without the exact fallback with exact search, on the sampled queries."""
        sampled = self._sample_queries(len(result.query_rows))
        exact = self._search_sharded(ExactIndex(self.index.device), encoded, encoded.queries[sampled], device)
        positives = [result.subset.queries[result.query_rows[row]].passage_ids for row in sampled.tolist()]
        pool_ids = [result.subset.pool[row].passage_id for row in result.indexed_rows]
        own = pool_ids, positives, min(10, self.ranked), self.recall_at
        compared = compare_rankings(result.ranking.rows[sampled], exact.rows, *own)
        if rows_without_fallback is not None:
            compared |= without_fallback(compare_rankings(rows_without_fallback, exact.rows, *own))
        return compared

    def _compute_metrics(
        self, subset: EvaluationSubset, encoded: EncodedSubset, ranking: Ranking, device: torch.device
    ) -> SubsetResult:
        query_rows, indexed_rows = encoded.query_rows.tolist(), encoded.pool_rows.tolist()
        queries, passages = [subset.queries[row] for row in query_rows], [subset.pool[row] for row in indexed_rows]
        positives, ids = [query.passage_ids for query in queries], [passage.passage_id for passage in passages]
        answers, texts = [query.answers for query in queries], [passage.text for passage in passages]
        # The ranks exchange results, for which NCCL requires GPU tensors; a single process is faster on the CPU.
        where = device if world_size() > 1 else "cpu"
        by_query = evaluate_ranking(ranking, ids, positives, self.recall_at, texts, answers, where)
        reachable = count_positives(ids, positives)
        random = {k: random_recall(len(ids), reachable, k) for k in self.recall_at}
        return SubsetResult(subset, query_rows, indexed_rows, ranking, by_query, query_means(by_query), random)

"""Retrieval after every epoch: the rows that the validation loop encoded are indexed, searched and scored, subset by subset."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from ret_lightning.data.batch import EvaluationBatch
from ret_lightning.data.types import EvaluationSubset, Split, distinct_ids
from ret_lightning.distributed.collectives import rank, world_size
from ret_lightning.errors import ConfigError
from ret_lightning.evaluation.embedding_sink import EncodedSubset, Vectors, VectorsInMemory
from ret_lightning.evaluation.metric_list import print_once
from ret_lightning.evaluation.published_results import HEADLINE_MEANS, headline_metrics
from ret_lightning.retrieval import (
    ExactIndex,
    Index,
    Ranking,
    compare_rankings,
    count_positives,
    draw_sample,
    intervals,
    judge,
    query_means,
    random_recall,
    search_replicated,
    search_sharded,
    write_qrels,
    write_run,
)
from ret_lightning.retrieval.metrics.ann_recall import FALLBACK_SHARE, short_share, without_fallback
from ret_lightning.retrieval.metrics.per_query import TOP

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SubsetResult:
    """What retrieval gave on one subset.

    Attributes:
        subset: its queries and pool.
        query_rows: which queries were encoded, positions in `subset.queries`, ascending; all, unless batches were limited.
        indexed_rows: which passages were, likewise.
        ranking: one row a query of `query_rows`; its positions are into `indexed_rows`.
        by_query: metric to (Nq,), NaN for queries that the metric does not count; `retrieval.judge`.
        metrics: their means: `recall@K`, `fractional_recall@K`, `mrr@10`, `ndcg@10`, and `pseudo_recall@K` where queries have
            answers; in [0, 1].
        random_recall: K to the expected recall of a random ranking of the same pool.
        agreement: of an approximate index, `fallback_share`, the share of the queries for which it found too few candidates;
            and on a sample of the queries `agreement@10` and `recall_cost@K`, with and `..._without_fallback@K` without its
            exact fallback. Empty for exact search.
    """

    subset: EvaluationSubset
    query_rows: list[int]
    indexed_rows: list[int]
    ranking: Ranking
    by_query: dict[str, Tensor]
    metrics: dict[str, float]
    random_recall: dict[int, float]
    agreement: dict[str, float] = field(default_factory=dict)

    @property
    def headline(self) -> list[str]:
        """The metrics to report first: recall, and pseudo recall where that belongs to it."""
        return headline_metrics(self.subset.name, self.metrics)

    def pool_rows(self, position: int) -> list[int]:
        """The ranked passages of the query at a position, as positions in `subset.pool`, best first."""
        return [self.indexed_rows[row] for row in self.ranking.rows[position].tolist() if row >= 0]


class RetrievalEvaluation(Callback):
    """Recall, MRR and nDCG on every subset, after every validation and on the test split.

    The module's validation and test steps return vectors; this callback collects them, puts each subset's pool into the
    index, ranks it for the queries, and logs `<split>/<subset>/recall@K`, `fractional_recall@K`, `pseudo_recall@K`,
    `mrr@10`, `ndcg@10`, their means over the subsets as `<split>/mean/...`, and the seconds that encoding, building and
    searching took; after a test also the ends of the 95 % intervals of the headline metrics, `test/<subset>/recall@5/low`
    and `/high`. Rows are told apart by their position in the file, so nothing is counted twice whatever the loaders did.
    Among several ranks exact search is sharded: each searches its share of the passages, for all queries. An approximate
    index is there whole on each, which searches for its share of the queries, and is measured against exact search on a
    sample of each subset's queries: `<split>/index/<subset>/agreement@10` and `.../recall_cost@K`, and their means under
    `<split>/index/`. The share of the queries for which the index found fewer candidates than `ranked`, and which its exact
    fallback ranked, is `<split>/index/<subset>/fallback_share`; `recall_cost_without_fallback@K` is the recall loss of the
    index alone.

    Args:
        index: searched for each subset in turn.
        recall_at: the K of the three kinds of recall.
        ranked: passages a query in the rankings, at least the largest K, 10 of MRR and nDCG included.
        agreement_sample: queries a subset on which an approximate index is measured; 0 for none. The same ones every time.

    Attributes:
        vectors: where encoded vectors go: into memory, unless somebody sets a `StoredVectors`.
        results: by split, what its last evaluation found of each subset.
    """

    def __init__(
        self,
        index: Index,
        recall_at: Sequence[int] = (1, 2, 3, 5, 10, 50, 100),
        ranked: int = 500,
        agreement_sample: int = 64,
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
        self.index = index
        self.recall_at = sorted(set(recall_at))
        if agreement_sample < 0:
            raise ConfigError(
                f"evaluation.agreement_sample={agreement_sample} is below 0; 0 leaves the measurement out",
                code="evaluation-agreement-sample",
                found=agreement_sample,
            )
        self.ranked = ranked
        self.agreement_sample = agreement_sample if index.approximate else 0
        self.results: dict[Split, dict[str, SubsetResult]] = {}
        self.vectors: Vectors = VectorsInMemory()
        self._started = 0.0
        self._warned: set[tuple[str, str]] = set()  # splits and subsets with too few candidates

    @staticmethod
    def of(trainer: Trainer) -> RetrievalEvaluation:
        """The trainer's evaluation callback; raises ConfigError where it has none."""
        for callback in trainer.callbacks:
            if isinstance(callback, RetrievalEvaluation):
                return callback
        raise ConfigError(
            "this callback needs a RetrievalEvaluation among the trainer's callbacks", code="evaluation-missing"
        )

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets what was collected before; an index whose device the config leaves open searches on the model's GPU."""
        if self.index.device is None and pl_module.device.type == "cuda":
            self.index.device = pl_module.device
        self.vectors.start()
        self._started = time.perf_counter()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Tensor,
        batch: EvaluationBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collects the vectors of a batch."""
        self.vectors.add(dataloader_idx, batch.rows, outputs, batch.imageless)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Indexes, searches, scores and logs; in the sanity check before training it only tries whether that can be done."""
        self._evaluate(trainer, pl_module, "val")

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As after a validation."""
        self._evaluate(trainer, pl_module, "test")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints each metric once, where `trainer.validate` is to print them."""
        print_once(trainer)

    on_test_end = on_validation_end

    def flat_metrics(self, split: Split) -> dict[str, float]:
        """`<subset>/recall@5` and so on, with the means over the subsets under `mean/`.

        A mean is over the subsets that have the metric. `mean/headline_recall` and `mean/headline_pseudo_recall` take of
        each subset what the paper reports of it, whatever its K.
        """
        results = self.results[split]
        flat = {
            f"{name}/{metric}": value for name, result in results.items() for metric, value in result.metrics.items()
        }
        for mean, parts in _means(results).items():
            flat[f"mean/{mean}"] = sum(flat[f"{name}/{metric}"] for name, metric in parts.items()) / len(parts)
        return flat

    def flat_intervals(self, split: Split) -> dict[str, tuple[float, float]]:
        """The 95 % interval of each of `flat_metrics`: (low, high); see `retrieval.intervals`."""
        results = self.results[split]
        return intervals({name: result.by_query for name, result in results.items()}, _means(results))

    def write_rankings(self, split: Split, folder: Path) -> None:
        """Two TREC files a subset: the run, `<folder>/<subset>.trec`, and what is right, `<folder>/<subset>.qrels`."""
        for name, result in self.results[split].items():
            ranked = [result.subset.queries[row] for row in result.query_rows]
            queries = distinct_ids(ranked)
            write_qrels(folder / f"{name}.qrels", queries, [query.passage_ids for query in ranked])
            pool = [result.subset.pool[row].passage_id for row in result.indexed_rows]
            write_run(folder / f"{name}.trec", queries, result.ranking, pool, tag="ret_lightning")

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule, split: Split) -> None:
        self.vectors.complete()
        seconds = {"encode": time.perf_counter() - self._started, "build": 0.0, "search": 0.0}
        if self.agreement_sample:
            seconds["agreement"] = 0.0
        subsets = trainer.datamodule.evaluation_subsets(split)
        # Every rank goes through the subsets in the same order: there are collectives inside.
        results = {
            subset.name: self._subset(subset, i, pl_module.device, seconds, tried=trainer.sanity_checking)
            for i, subset in enumerate(subsets)
        }
        if trainer.sanity_checking:
            return
        self.results[split] = results
        metrics, agreement = self.flat_metrics(split), self._flat_agreement(split)
        pl_module.log_dict({f"{split}/{name}": value for name, value in metrics.items()}, sync_dist=True)
        pl_module.log_dict({f"{split}/index/{name}": value for name, value in agreement.items()}, sync_dist=True)
        pl_module.log_dict({f"{split}/seconds/{k}": v for k, v in seconds.items()}, sync_dist=True)
        if split == "test":
            self._log_intervals(pl_module)
        if trainer.is_global_zero:
            log.info("%s", self._line(split, trainer, metrics | agreement, seconds))

    def _log_intervals(self, pl_module: LightningModule) -> None:
        results = self.results["test"]
        shown = {f"{name}/{metric}" for name, result in results.items() for metric in result.headline}
        shown.update(f"mean/{name}" for name in HEADLINE_MEANS)
        for key, (low, high) in self.flat_intervals("test").items():
            if key in shown:
                pl_module.log_dict({f"test/{key}/low": low, f"test/{key}/high": high}, sync_dist=True)

    def _subset(
        self,
        subset: EvaluationSubset,
        number: int,
        device: torch.device,
        seconds: dict[str, float],
        tried: bool = False,
    ) -> SubsetResult:
        encoded = self.vectors.subset(number, subset, device)
        if len(encoded.pool_rows) < len(subset.pool) and not tried:
            log.warning(
                "%s/%s: only %d of %d passages were encoded (trainer.limit_%s_batches): recall is higher than it would be",
                *(subset.split, subset.name, len(encoded.pool_rows), len(subset.pool), subset.split),
            )
        start = time.perf_counter()
        if isinstance(self.index, ExactIndex):
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
        if self.agreement_sample:
            measured |= self._agreement(result, unaided, encoded, device)
            seconds["agreement"] += time.perf_counter() - searched
        return replace(result, agreement=measured)

    def _unaided(self, index: Index, ranking: Ranking, queries: Tensor, device: torch.device) -> Tensor | None:
        """The rows of the sampled queries' rankings without the exact fallback; None of an index that has none."""
        if not self.agreement_sample or ranking.short is None or not len(queries):
            return None
        drawn = self._sample(len(queries))
        if not ranking.short[drawn].any():
            return ranking.rows[drawn]
        return search_replicated(index, queries[drawn], self.ranked, device, fallback=False).rows

    def _sample(self, count: int) -> Tensor:
        return draw_sample(count, self.agreement_sample, seed=0)

    def _warn_of_fallback(self, subset: EvaluationSubset, ranking: Ranking, tried: bool) -> None:
        short = 0 if ranking.short is None else int(ranking.short.sum())
        key = subset.split, subset.name
        if not short or tried or rank() != 0 or key in self._warned:
            return
        self._warned.add(key)
        exact = getattr(self.index, "exact_fallback", False)
        log.warning(
            "%s/%s: the index found fewer than %d candidates for %d of %d queries (%.1f %%), %s; raise retrieval.probes, "
            "retrieval.hits or retrieval.candidates, or lower evaluation.ranked",
            *(*key, self.ranked, short, len(ranking), 100 * short / len(ranking)),
            "which were ranked exactly (retrieval.exact_fallback=false turns that off)"
            if exact
            else "whose rankings are shorter",
        )

    def _sharded(self, index: ExactIndex, encoded: EncodedSubset, queries: Tensor, device: torch.device) -> Ranking:
        return search_sharded(index, encoded.share, encoded.positions, queries, self.ranked, device)

    def _agreement(
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

    def _flat_agreement(self, split: Split) -> dict[str, float]:
        """`agreement@10` and so on, means over the subsets, and `<subset>/agreement@10` for each."""
        measured = {name: r.agreement for name, r in self.results[split].items() if r.agreement}
        names = dict.fromkeys(metric for own in measured.values() for metric in own)
        flat = {metric: sum(own[metric] for own in measured.values()) / len(measured) for metric in names}
        return flat | {f"{name}/{metric}": value for name, own in measured.items() for metric, value in own.items()}

    def _scored(
        self, subset: EvaluationSubset, encoded: EncodedSubset, ranking: Ranking, device: torch.device
    ) -> SubsetResult:
        query_rows, indexed_rows = encoded.query_rows.tolist(), encoded.pool_rows.tolist()
        queries, passages = [subset.queries[row] for row in query_rows], [subset.pool[row] for row in indexed_rows]
        positives, ids = [query.passage_ids for query in queries], [passage.passage_id for passage in passages]
        answers, texts = [query.answers for query in queries], [passage.text for passage in passages]
        # Ranks exchange what they found, which NCCL does between GPUs only; alone, the CPU is quicker.
        meeting = device if world_size() > 1 else "cpu"
        by_query = judge(ranking, ids, positives, self.recall_at, texts, answers, meeting)
        reachable = count_positives(ids, positives)
        random = {k: random_recall(len(ids), reachable, k) for k in self.recall_at}
        return SubsetResult(subset, query_rows, indexed_rows, ranking, by_query, query_means(by_query), random)

    def _line(self, split: Split, trainer: Trainer, metrics: dict[str, float], seconds: dict[str, float]) -> str:
        at = 5 if 5 in self.recall_at else self.recall_at[-1]
        each = ", ".join(f"{name} {metrics[f'{name}/recall@{at}']:.3f}" for name in self.results[split])
        times = ", ".join(f"{what} {value:.2f} s" for what, value in seconds.items())
        if "agreement@10" in metrics:
            times = f"agreement@10 with exact search {metrics['agreement@10']:.3f}, {times}"
        if metrics.get(FALLBACK_SHARE):
            alone = metrics.get(f"recall_cost_without_fallback@{at}")
            loss = "" if alone is None else f", recall@{at} loss without the exact fallback {alone:.3f}"
            times = f"{metrics[FALLBACK_SHARE]:.1%} of queries with too few candidates{loss}, {times}"
        fit = trainer.state.fn == "fit"
        where = f"epoch {trainer.current_epoch + 1}, step {trainer.global_step}" if fit else split
        return f"{where}: recall@{at} {metrics[f'mean/recall@{at}']:.3f} ({each}); {times}"


def _means(results: Mapping[str, SubsetResult]) -> dict[str, dict[str, str]]:
    """The means over subsets: name to the subsets that it is over, each with the metric that it takes of it."""
    metrics = dict.fromkeys(metric for result in results.values() for metric in result.metrics)
    means = {m: {name: m for name, result in results.items() if m in result.metrics} for m in metrics}
    for mean, metric in HEADLINE_MEANS.items():
        parts = {name: own for name, r in results.items() for own in r.headline if own.startswith(f"{metric}@")}
        if parts:
            means[mean] = parts
    return means

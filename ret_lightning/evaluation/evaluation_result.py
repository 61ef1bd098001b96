"""What an evaluation found: rankings, metrics, and their means and intervals over subsets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import Tensor

from ret_lightning.data.types import EvaluationSubset, distinct_ids
from ret_lightning.evaluation.published_results import MAIN_MEANS, main_metrics
from ret_lightning.retrieval import Ranking, intervals, write_qrels, write_run


@dataclass(frozen=True)
class SubsetResult:
    """What retrieval found on one subset.

    Attributes:
        subset: its queries and pool.
        query_rows: which queries were encoded, positions in `subset.queries`, ascending; all, unless batches were limited.
        indexed_rows: which passages were, positions in `subset.pool`, ascending.
        ranking: one row per query of `query_rows`; its positions are into `indexed_rows`.
        by_query: metric to (Nq,), NaN for queries that the metric does not count; `retrieval.judge`.
        metrics: their means: `recall@K`, `fractional_recall@K`, `mrr@10`, `ndcg@10`, and `pseudo_recall@K` where queries have
            answers; in [0, 1].
        random_recall: K to the expected recall of a random ranking of the same pool.
        ann_recall: of an approximate index, `fallback_share`, the share of the queries for which it found too few candidates;
            and on a sample of the queries `ann_recall@10` and `recall_loss@K`, with and `..._without_fallback@K` without its
            exact fallback. Empty for exact search.
    """

    subset: EvaluationSubset
    query_rows: list[int]
    indexed_rows: list[int]
    ranking: Ranking
    by_query: dict[str, Tensor]
    metrics: dict[str, float]
    random_recall: dict[int, float]
    ann_recall: dict[str, float] = field(default_factory=dict)

    @property
    def main_metrics(self) -> list[str]:
        """The metrics to report first: recall, and pseudo recall where that belongs to it."""
        return main_metrics(self.subset.name, self.metrics)

    def pool_rows(self, position: int) -> list[int]:
        """The ranked passages of the query at a position, as positions in `subset.pool`, best first."""
        return [self.indexed_rows[row] for row in self.ranking.rows[position].tolist() if row >= 0]


@dataclass(frozen=True)
class EvaluationResult:
    """What retrieval found on all subsets of a split.

    Attributes:
        subsets: by name, in the order of the evaluation.
        seconds: that `encode`, `build`, `search` and, for an approximate index, `ann_recall` took.
    """

    subsets: dict[str, SubsetResult]
    seconds: dict[str, float]

    @cached_property
    def metrics(self) -> dict[str, float]:
        """`<subset>/recall@5` and so on, with the means over the subsets under `mean/`.

        A mean is over the subsets that have the metric. `mean/main_recall` and `mean/main_pseudo_recall` take of
        each subset what the paper reports of it, whatever its K.
        """
        flat = {
            f"{name}/{metric}": value
            for name, result in self.subsets.items()
            for metric, value in result.metrics.items()
        }
        for mean, parts in self._means().items():
            flat[f"mean/{mean}"] = sum(flat[f"{name}/{metric}"] for name, metric in parts.items()) / len(parts)
        return flat

    @cached_property
    def ann_recall(self) -> dict[str, float]:
        """`ann_recall@10` and so on, means over the subsets, and `<subset>/ann_recall@10` for each; empty for exact search."""
        measured = {name: result.ann_recall for name, result in self.subsets.items() if result.ann_recall}
        names = dict.fromkeys(metric for own in measured.values() for metric in own)
        flat = {metric: sum(own[metric] for own in measured.values()) / len(measured) for metric in names}
        return flat | {f"{name}/{metric}": value for name, own in measured.items() for metric, value in own.items()}

    def intervals(self) -> dict[str, tuple[float, float]]:
        """The 95 % interval of each of `metrics`: (low, high); see `retrieval.intervals`."""
        return intervals({name: result.by_query for name, result in self.subsets.items()}, self._means())

    def write_rankings(self, folder: str | Path) -> None:
        """Write two TREC files per subset: the run, `<folder>/<subset>.trec`, and the positives, `<folder>/<subset>.qrels`."""
        for name, result in self.subsets.items():
            ranked = [result.subset.queries[row] for row in result.query_rows]
            queries = distinct_ids(ranked)
            write_qrels(Path(folder) / f"{name}.qrels", queries, [query.passage_ids for query in ranked])
            pool = [result.subset.pool[row].passage_id for row in result.indexed_rows]
            write_run(Path(folder) / f"{name}.trec", queries, result.ranking, pool, tag="ret_lightning")

    def _means(self) -> Mapping[str, Mapping[str, str]]:
        """The means over subsets: name to the subsets that it is over, each with the metric that it takes of it."""
        metrics = dict.fromkeys(metric for result in self.subsets.values() for metric in result.metrics)
        means = {m: {name: m for name, result in self.subsets.items() if m in result.metrics} for m in metrics}
        for mean, metric in MAIN_MEANS.items():
            parts = {
                name: own for name, r in self.subsets.items() for own in r.main_metrics if own.startswith(f"{metric}@")
            }
            if parts:
                means[mean] = parts
        return means

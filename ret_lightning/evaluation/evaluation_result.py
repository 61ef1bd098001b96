"""Results of an evaluation: rankings, metrics, means over subsets and intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import Tensor

from ret_lightning.data.types import EvaluationSubset, distinct_ids
from ret_lightning.evaluation.published_results import MAIN_MEANS, select_main_metrics
from ret_lightning.retrieval import Ranking, bootstrap_intervals, write_qrels, write_run
from ret_lightning.runtime.deprecation import RenamedAttribute


@dataclass(frozen=True)
class SubsetResult:
    """Retrieval results of one subset.

    Attributes:
        subset: the subset, with its queries and candidate pool.
        query_rows: positions in `subset.queries` of the encoded queries, ascending; all, unless batches were limited.
        indexed_rows: positions in `subset.pool` of the indexed passages, ascending.
        ranking: one row per query of `query_rows`; its positions refer to `indexed_rows`.
        by_query: metric to (Nq,) float64, the value per query; NaN for queries that the metric does not count.
        metrics: means of `by_query` in [0, 1]: `recall@K`, `fractional_recall@K`, `mrr@10`, `ndcg@10`, and
            `pseudo_recall@K` if queries have answers.
        random_recall: K to the expected recall of a random ranking of the same candidate pool.
        ann_recall: comparison of an approximate index with exact search; empty for exact search. `fallback_share` is
            the share of queries for which the index found too few candidates. `ann_recall@10` and `recall_loss@K` are
            computed on a sample of the queries; their variants `..._without_fallback@K` are those of the index without
            its exact fallback.
    """

    subset: EvaluationSubset
    query_rows: list[int]
    indexed_rows: list[int]
    ranking: Ranking
    by_query: dict[str, Tensor]
    metrics: dict[str, float]
    random_recall: dict[int, float]
    ann_recall: dict[str, float] = field(default_factory=dict)

    agreement = RenamedAttribute("ann_recall")
    headline = RenamedAttribute("main_metrics")  # earlier name

    @property
    def main_metrics(self) -> list[str]:
        """Names of the main metrics: recall, and pseudo recall if it is reported for the subset."""
        return select_main_metrics(self.subset.name, self.metrics)

    def pool_rows(self, position: int) -> list[int]:
        """Return the ranked passages of a query.

        Args:
            position: position of the query in `query_rows`.

        Returns:
            Positions in `subset.pool`, best first.
        """
        return [self.indexed_rows[row] for row in self.ranking.rows[position].tolist() if row >= 0]


@dataclass(frozen=True)
class EvaluationResult:
    """Retrieval results of all subsets of a split.

    Attributes:
        subsets: subset name to result, in the order of the evaluation.
        seconds: times of `encode`, `build`, `search` and, for an approximate index, `ann_recall`.
    """

    subsets: dict[str, SubsetResult]
    seconds: dict[str, float]

    @cached_property
    def metrics(self) -> dict[str, float]:
        """All metrics: `<subset>/recall@5` and so on, with the means over the subsets under `mean/`.

        A mean is over the subsets that have the metric. `mean/main_recall` and `mean/main_pseudo_recall` use the K that
        the paper reports for each subset.
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
        """`<subset>/ann_recall@10` and so on, with the means over the subsets as `ann_recall@10`; empty for exact search."""
        measured = {name: result.ann_recall for name, result in self.subsets.items() if result.ann_recall}
        names = dict.fromkeys(metric for own in measured.values() for metric in own)
        flat = {metric: sum(own[metric] for own in measured.values()) / len(measured) for metric in names}
        return flat | {f"{name}/{metric}": value for name, own in measured.items() for metric, value in own.items()}

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Compute the 95 % bootstrap interval (low, high) of each of `metrics`."""
        return bootstrap_intervals({name: result.by_query for name, result in self.subsets.items()}, self._means())

    def write_rankings(self, folder: str | Path) -> None:
        """Write two TREC files per subset: the run `<subset>.trec` and the positives `<subset>.qrels`.

        Args:
            folder: the folder to write.
        """
        for name, result in self.subsets.items():
            ranked = [result.subset.queries[row] for row in result.query_rows]
            queries = distinct_ids(ranked)
            write_qrels(Path(folder) / f"{name}.qrels", queries, [query.passage_ids for query in ranked])
            pool = [result.subset.pool[row].passage_id for row in result.indexed_rows]
            write_run(Path(folder) / f"{name}.trec", queries, result.ranking, pool, tag="ret_lightning")

    def _means(self) -> Mapping[str, Mapping[str, str]]:
        """Return the means over subsets: name to the subsets that it covers, each with the metric to average."""
        metrics = dict.fromkeys(metric for result in self.subsets.values() for metric in result.metrics)
        means = {m: {name: m for name, result in self.subsets.items() if m in result.metrics} for m in metrics}
        for mean, metric in MAIN_MEANS.items():
            parts = {
                name: own for name, r in self.subsets.items() for own in r.main_metrics if own.startswith(f"{metric}@")
            }
            if parts:
                means[mean] = parts
        return means

"""Metrics of single queries, computed from the TREC files of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from ret_lightning.data.types import EvaluationSubset, distinct_ids
from ret_lightning.errors import DataError
from ret_lightning.evaluation.published_results import MAIN_MEANS, select_main_metrics
from ret_lightning.report.run_folders import Run
from ret_lightning.retrieval import Ranking, evaluate_ranking, query_means, read_qrels, read_run
from ret_lightning.retrieval.metrics.per_query import TOP
from ret_lightning.runtime.run_layout import RANKINGS_FOLDER

# Largest rounding difference between metrics.json and rankings of the same run.
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class PerQueryScores:
    """The values of a metric for the queries of one subset in one run.

    Attributes:
        queries: query ids, in the order of the qrels.
        positives: ids of the relevant passages of each query.
        values: (Nq,) float64, the metric of each query; NaN where the metric does not count the query.
        best: id of the top-ranked passage of each query; "" if nothing was ranked.
    """

    queries: list[str]
    positives: list[tuple[str, ...]]
    values: np.ndarray
    best: list[str]


def resolve_mean_metric(metric: str, metrics: Mapping[str, float]) -> dict[str, str]:
    """Resolve a metric to the subsets it averages, each with the metric of that subset.

    Args:
        metric: `okvqa/recall@5`, `mean/recall@5` or `mean/main_recall`.
        metrics: all metrics of a run.
    """
    subset, _, name = metric.partition("/")
    if subset != "mean":
        return {subset: name}
    by_subset: dict[str, list[str]] = {}
    for key in metrics:
        subset, _, kind = key.partition("/")
        if subset != "mean":
            by_subset.setdefault(subset, []).append(kind)
    if name not in MAIN_MEANS:
        return {subset: name for subset, kinds in by_subset.items() if name in kinds}
    prefix = f"{MAIN_MEANS[name]}@"
    return {
        subset: m
        for subset, kinds in by_subset.items()
        for m in select_main_metrics(subset, kinds)
        if m.startswith(prefix)
    }


def score_queries(run: Run, subset: str, metric: str, data: EvaluationSubset | None) -> PerQueryScores:
    """Compute a metric for every query of a subset, and check that its mean equals the value in `metrics.json`.

    Args:
        run: a finished run.
        subset: a subset of its test split.
        metric: such as `recall@5` or `mrr@10`.
        data: texts and answers of the subset; only pseudo recall needs them.

    Raises:
        DataError: if a file is missing or malformed, the mean differs from the reported value, or required texts are missing.
    """
    rankings = run.folder / RANKINGS_FOLDER
    relevant = read_qrels(rankings / f"{subset}.qrels")
    queries = list(relevant)
    ranked = read_run(rankings / f"{subset}.trec")
    pool = list(dict.fromkeys(passage for entries in ranked.values() for passage, _ in entries))
    texts = answers = None
    if metric.startswith("pseudo_recall"):
        if data is None:
            raise DataError(
                f"{run.name}: {metric} per query requires the passage texts, and the dataset cannot be read",
                code="metric-needs-texts",
                metric=metric,
            )
        by_id = {passage.passage_id: passage.text for passage in data.pool}
        rows = dict(zip(distinct_ids(data.queries), data.queries, strict=True))
        texts = [by_id.get(passage) for passage in pool]
        answers = [rows[query].answers if query in rows else () for query in queries]
    _, _, k = metric.partition("@")
    at = int(k) if metric.startswith(("recall", "pseudo_recall")) else TOP
    ranking = _ranking(ranked, queries, pool, max(at, TOP))
    values = evaluate_ranking(ranking, pool, list(relevant.values()), [at], texts, answers).get(metric)
    mean = None if values is None else query_means({metric: values}).get(metric)
    reported = run.metrics[f"{subset}/{metric}"]
    if values is None or mean is None or abs(mean - reported) > _TOLERANCE:
        raise DataError(
            f"{rankings / subset}.trec: {metric} is {mean}, expected {reported} as in metrics.json; "
            "the rankings are not those of this run",
            code="rankings-disagree",
            path=rankings,
            subset=subset,
            metric=metric,
            found=mean,
            expected=reported,
        )
    best = [ranked[query][0][0] if ranked.get(query) else "" for query in queries]
    return PerQueryScores(queries, list(relevant.values()), values.numpy(), best)


def _ranking(ranked: Mapping[str, list[tuple[str, float]]], queries: list[str], pool: list[str], width: int) -> Ranking:
    """Return the first `width` passages of each query as rows of the pool, padded with -1."""
    positions = {passage: i for i, passage in enumerate(pool)}
    rows = torch.full((len(queries), width), -1, dtype=torch.int64)
    scores = torch.full((len(queries), width), -torch.inf)
    for i, query in enumerate(queries):
        entries = ranked.get(query, [])[:width]
        rows[i, : len(entries)] = torch.tensor([positions[passage] for passage, _ in entries], dtype=torch.int64)
        scores[i, : len(entries)] = torch.tensor([score for _, score in entries])
    return Ranking(rows, scores)

"""What each query got from a run, from the run's TREC files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from ret_lightning.data.types import EvaluationSubset, distinct_ids
from ret_lightning.errors import DataError
from ret_lightning.evaluation.published_results import MAIN_MEANS, main_metrics
from ret_lightning.report.run_folders import Run
from ret_lightning.retrieval import Ranking, judge, query_means, read_qrels, read_run
from ret_lightning.retrieval.metrics.per_query import TOP
from ret_lightning.runtime.run_layout import RANKINGS_FOLDER

# metrics.json and the rankings were written by one run: what differs by more was not.
_AGREEMENT = 1e-6


@dataclass(frozen=True)
class Judged:
    """One subset of one run, by query.

    Attributes:
        queries: ids, in the order of the qrels.
        positives: for each its right passages.
        values: (Nq,) float64, the metric of each query, NaN where it does not count the query.
        best: the id of each query's first passage; "" where nothing was ranked.
    """

    queries: list[str]
    positives: list[tuple[str, ...]]
    values: np.ndarray
    best: list[str]


def mean_parts(metric: str, metrics: Mapping[str, float]) -> dict[str, str]:
    """The subsets that a metric is a mean over, each with the metric that it takes of it.

    Args:
        metric: `okvqa/recall@5`, `mean/recall@5` or `mean/main_recall`.
        metrics: of a run.
    """
    subset, _, name = metric.partition("/")
    if subset != "mean":
        return {subset: name}
    own: dict[str, list[str]] = {}
    for key in metrics:
        of, _, kind = key.partition("/")
        if of != "mean":
            own.setdefault(of, []).append(kind)
    if name not in MAIN_MEANS:
        return {of: name for of, kinds in own.items() if name in kinds}
    wanted = f"{MAIN_MEANS[name]}@"
    return {of: m for of, kinds in own.items() for m in main_metrics(of, kinds) if m.startswith(wanted)}


def judge_run(run: Run, subset: str, metric: str, data: EvaluationSubset | None) -> Judged:
    """A metric of every query of a subset, checked against what the run itself reported.

    Args:
        run: a finished one.
        subset: of its test split.
        metric: `recall@5`, `mrr@10` and so on.
        data: the subset's texts and answers, which pseudo recall needs.

    Raises:
        DataError: if the files are missing or broken, do not give what `metrics.json` has, or texts are needed and not there.
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
                f"{metric} of single queries needs the texts of the data, which cannot be read here",
                code="metric-needs-texts",
                metric=metric,
            )
        by_id = {passage.passage_id: passage.text for passage in data.pool}
        asked = dict(zip(distinct_ids(data.queries), data.queries, strict=True))
        texts = [by_id.get(passage) for passage in pool]
        answers = [asked[query].answers if query in asked else () for query in queries]
    _, _, k = metric.partition("@")
    at = int(k) if metric.startswith(("recall", "pseudo_recall")) else TOP
    ranking = _ranking(ranked, queries, pool, max(at, TOP))
    values = judge(ranking, pool, list(relevant.values()), [at], texts, answers).get(metric)
    mean = None if values is None else query_means({metric: values}).get(metric)
    reported = run.metrics[f"{subset}/{metric}"]
    if mean is None or abs(mean - reported) > _AGREEMENT:
        raise DataError(
            f"{rankings}: {subset} gives {metric} = {mean}, where the run reported {reported}",
            code="rankings-disagree",
            path=rankings,
            subset=subset,
            metric=metric,
            found=mean,
            expected=reported,
        )
    best = [ranked[query][0][0] if ranked.get(query) else "" for query in queries]
    return Judged(queries, list(relevant.values()), values.numpy(), best)


def _ranking(ranked: Mapping[str, list[tuple[str, float]]], queries: list[str], pool: list[str], width: int) -> Ranking:
    """The first passages of each query, as many as a metric looks at; -1 where a small pool has no more."""
    at = {passage: i for i, passage in enumerate(pool)}
    rows = torch.full((len(queries), width), -1, dtype=torch.int64)
    scores = torch.full((len(queries), width), -torch.inf)
    for i, query in enumerate(queries):
        entries = ranked.get(query, [])[:width]
        rows[i, : len(entries)] = torch.tensor([at[passage] for passage, _ in entries], dtype=torch.int64)
        scores[i, : len(entries)] = torch.tensor([score for _, score in entries])
    return Ranking(rows, scores)

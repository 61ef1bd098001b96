"""Random rankings with the properties of real ones, and the metrics of one query written with loops."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from ret_lightning.retrieval import (
    QueryMetric,
    Ranking,
    evaluate_ranking,
)

METRICS = [
    partial(QueryMetric, "recall", [1, 5]),
    partial(QueryMetric, "pseudo_recall", [5, 1, 5]),
    partial(QueryMetric, "mrr", [3, 10]),
    partial(QueryMetric, "ndcg", [3, 10]),
    partial(QueryMetric, "fractional_recall", [3, 10]),
]
KS = (1, 2, 3, 5, 10, 50)


@dataclass(frozen=True)
class Case:
    """Rankings of a pool with positives and answers."""

    ids: list[str]
    texts: list[str | None]
    ranking: Ranking
    positives: list[list[str]]
    answers: list[list[str]]

    @property
    def query_ids(self) -> list[str]:
        return [f"query {i}" for i in range(len(self.positives))]


def random_hits(queries: int, width: int = 10, share: float = 0.1, seed: int = 0) -> torch.Tensor:
    return torch.rand(queries, width, generator=torch.Generator().manual_seed(seed)) < share


def updated(metric: QueryMetric, queries: torch.Tensor, hits: torch.Tensor) -> QueryMetric:
    more = [hits.sum(dim=1) + 1] if metric.name in ("ndcg", "fractional_recall") else []
    metric.update(queries, hits, *more)
    return metric


def evaluate_case(case: Case, **options) -> dict[str, torch.Tensor]:
    return evaluate_ranking(case.ranking, case.ids, case.positives, KS, case.texts, case.answers, **options)


def make_case(queries: int = 60, pool: int = 80, width: int = 60, seed: int = 0) -> Case:
    """Tied scores, short rankings, several positives, some of them repeated or missing from the pool."""
    random = np.random.default_rng(seed)
    # The order of ids differs from that of the pool, so that another rule for ties is detected.
    ids = [f"{number:03d}" for number in random.permutation(pool)]
    texts = [None if random.random() < 0.1 else f"Fact {random.integers(12)} of Things" for _ in ids]
    rows = np.full((queries, width), -1)
    scores = np.full((queries, width), -np.inf, dtype=np.float32)
    positives, answers = [], []
    for query in range(queries):
        found = int(random.integers(width + 1)) if query % 3 else min(width, pool)
        found = min(found, pool)
        rows[query, :found] = random.permutation(pool)[:found]
        # One decimal, so that about half of the scores are tied.
        scores[query, :found] = np.sort(random.normal(size=found).round(1))[::-1]
        own = [str(passage) for passage in random.choice(ids, size=random.integers(1, 6))]
        if query % 4 == 0:
            own += ["elsewhere", own[0], "elsewhere", "nowhere"]
        if query % 10 == 0:
            own = ["elsewhere"]
        positives.append(own)
        answers.append([f" fACT {random.integers(20)} of", "  "] if query % 2 else [""])
    return Case(ids, texts, Ranking(torch.from_numpy(rows), torch.from_numpy(scores)), positives, answers)


def by_definition(case: Case, query: int) -> dict[str, float]:
    """Compute every metric of one query with loops."""
    ranked = [row for row in case.ranking.rows[query].tolist() if row >= 0]
    right = set(case.positives[query])
    wanted = [answer.strip().lower() for answer in case.answers[query] if answer.strip()]
    metrics = {}
    for k in KS:
        metrics[f"recall@{k}"] = 1.0 if any(case.ids[row] in right for row in ranked[:k]) else 0.0
        metrics[f"fractional_recall@{k}"] = len(right & {case.ids[row] for row in ranked[:k]}) / len(right)
        texts = [case.texts[row].lower() for row in ranked[:k] if case.texts[row] is not None]
        if wanted:
            metrics[f"pseudo_recall@{k}"] = 1.0 if any(a in text for a in wanted for text in texts) else 0.0
    metrics["mrr@10"] = 0.0
    for rank, row in enumerate(ranked[:10], start=1):
        if case.ids[row] in right:
            metrics["mrr@10"] = 1 / rank
            break
    gained = sum(1 / math.log2(rank + 1) for rank, row in enumerate(ranked[:10], start=1) if case.ids[row] in right)
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(10, len(right)) + 1))
    metrics["ndcg@10"] = gained / ideal
    return metrics

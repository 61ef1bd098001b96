"""Per-query metrics of a ranking."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ret_lightning.distributed.collectives import gather_rows, row_counts
from ret_lightning.retrieval.distributed.replicated import rank_slice
from ret_lightning.retrieval.metrics.rank_metrics import rank_metrics
from ret_lightning.retrieval.metrics.relevance import answer_hits, count_relevant, has_answers, positive_hits
from ret_lightning.retrieval.ranking import Ranking

# The usual K of MRR and nDCG.
TOP = 10


def evaluate_ranking(
    ranking: Ranking,
    pool_ids: Sequence[str],
    positives: Sequence[Sequence[str]],
    recall_at: Sequence[int],
    pool_texts: Sequence[str | None] | None = None,
    answers: Sequence[Sequence[str]] | None = None,
    device: str | torch.device = "cpu",
) -> dict[str, Tensor]:
    """Compute the per-query metrics of a ranking.

    `query_means` averages them over queries and `bootstrap_intervals` computes confidence intervals of the means. If
    torch.distributed is initialized, call this on all ranks with the same arguments: each rank evaluates a part of the
    queries, and all ranks return all results.

    Args:
        ranking: ranking of Nq queries, at least as wide as the largest K.
        pool_ids: the N passage ids that the rows of the ranking index.
        positives: for each query, the ids of its positives.
        recall_at: values of K of recall, fractional recall and pseudo-recall.
        pool_texts: the N passage texts, for pseudo-recall. None: pseudo-recall is omitted.
        answers: for each query its answers, for pseudo-recall.
        device: device for the collective communication, a GPU for NCCL.

    Returns:
        Metric name to (Nq,) float64 on the CPU, NaN for queries that the metric does not count: `recall@K`, `mrr@10`,
        `ndcg@10`, `fractional_recall@K`, and `pseudo_recall@K` if any query has answers (NaN for queries without answers).

    Raises:
        ConfigError: if `recall_at` is empty or a K is below 1.
        ValueError: if lengths do not match, or the ranking is narrower than the largest K.
    """
    own = rank_slice(len(ranking))
    rows = ranking.rows[own, : max([TOP, *recall_at])]
    hits = positive_hits(rows, pool_ids, positives[own])
    relevant = torch.tensor(count_relevant(pool_ids, positives[own]), dtype=torch.int64)
    found = rank_metrics("recall", recall_at, hits)
    for name, ks in (("mrr", [TOP]), ("ndcg", [TOP]), ("fractional_recall", recall_at)):
        found |= rank_metrics(name, ks, hits, relevant)
    if pool_texts is not None and answers is not None and has_answers(answers).any():
        pseudo = rank_metrics("pseudo_recall", recall_at, answer_hits(rows, pool_texts, answers[own]))
        unanswered = ~has_answers(answers[own])
        found |= {name: values.masked_fill(unanswered, torch.nan) for name, values in pseudo.items()}
    values = torch.stack(list(found.values()), dim=1).to(device)
    return dict(zip(found, gather_rows(values, row_counts(values)).T.cpu().contiguous(), strict=True))

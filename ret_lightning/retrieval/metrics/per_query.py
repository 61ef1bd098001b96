"""From a ranking to every metric of every query."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ret_lightning.distributed.collectives import rank, world_size
from ret_lightning.retrieval.metrics.rank_metrics import (
    FractionalRecallAtK,
    MRRAtK,
    NDCGAtK,
    PseudoRecallAtK,
    RecallAtK,
)
from ret_lightning.retrieval.metrics.relevance import answer_hits, count_relevant, has_answers, positive_hits
from ret_lightning.retrieval.ranking import Ranking

# K of MRR and nDCG, as the field reports them.
TOP = 10


def judge(
    ranking: Ranking,
    pool_ids: Sequence[str],
    positives: Sequence[Sequence[str]],
    recall_at: Sequence[int],
    pool_texts: Sequence[str | None] | None = None,
    answers: Sequence[Sequence[str]] | None = None,
    device: str | torch.device = "cpu",
) -> dict[str, Tensor]:
    """Recall of three kinds, MRR@10 and nDCG@10 of each query; `query_means` averages them, `intervals` tells how sure that is.

    Where torch.distributed is in use, all ranks must call this with the same arguments: each judges its share of the queries,
    and all get all results.

    Args:
        ranking: of Nq queries, as wide as the largest K at least.
        pool_ids: the N passage ids that the rows of the ranking point into.
        positives: for each query its passage ids.
        recall_at: the K of the three kinds of recall.
        pool_texts: the N passage texts, for pseudo recall; None: without it.
        answers: for each query its answers, for pseudo recall.
        device: where ranks exchange results: a GPU under NCCL.

    Returns:
        Name to (Nq,) float64 on the CPU, NaN for a query that the metric does not count: `recall@K`, `fractional_recall@K`,
        `mrr@10`, `ndcg@10`, and `pseudo_recall@K`, NaN for queries without answers, if any query has answers.

    Raises:
        ValueError: if lengths do not fit, or the ranking is narrower than the largest K.
    """
    own = torch.arange(len(ranking))[rank() :: world_size()]  # of few queries not every rank has one
    rows = ranking.rows[own, : max([TOP, *recall_at])]
    chosen = [positives[query] for query in own.tolist()]
    hits = positive_hits(rows, pool_ids, chosen)
    results = {}
    for kind, ks in ((RecallAtK, recall_at), (MRRAtK, [TOP])):
        metric = kind(ks, len(ranking)).to(device)
        metric.update(own, hits)
        results |= metric.by_query()
    relevant = torch.tensor(count_relevant(pool_ids, chosen), dtype=torch.int64)
    for kind, ks in ((NDCGAtK, [TOP]), (FractionalRecallAtK, recall_at)):
        metric = kind(ks, len(ranking)).to(device)
        metric.update(own, hits, relevant)
        results |= metric.by_query()
    if pool_texts is None or answers is None or not (known := has_answers(answers)).any():
        return results
    pseudo = PseudoRecallAtK(recall_at, len(ranking)).to(device)
    kept = known[own]
    texts_asked = [answers[query] for query in own[kept].tolist()]
    pseudo.update(own[kept], answer_hits(rows[kept, : max(recall_at)], pool_texts, texts_asked))
    return results | pseudo.by_query()

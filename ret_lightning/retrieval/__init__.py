"""Searching a pool of embeddings, and judging the rankings. Knows vectors and ids, not models or data sets.

`Embeddings`, in memory or of an `EmbeddingStore` on disk, go into an `Index` (`ExactIndex`, `FaissIndex`, `MuveraIndex`), a
search gives a `Ranking`, and the metrics and TREC files are made from it; `measure_agreement` says how near an index comes
to exact search. Importing this package imports nothing: a search needs no torchmetrics, which takes seconds, and a metric no
FAISS.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ret_lightning.retrieval.distributed.replicated import gather_at, search_replicated, share_of
    from ret_lightning.retrieval.distributed.sharded import search_sharded
    from ret_lightning.retrieval.indexes.base import Index
    from ret_lightning.retrieval.indexes.exact import ExactIndex
    from ret_lightning.retrieval.indexes.faiss_index import FaissIndex
    from ret_lightning.retrieval.indexes.muvera import MuveraIndex
    from ret_lightning.retrieval.metrics.agreement import compare_rankings, draw_sample, measure_agreement
    from ret_lightning.retrieval.metrics.bootstrap import intervals
    from ret_lightning.retrieval.metrics.per_query import judge
    from ret_lightning.retrieval.metrics.rank_metrics import (
        FractionalRecallAtK,
        MRRAtK,
        NDCGAtK,
        PseudoRecallAtK,
        QueryMetric,
        RecallAtK,
        query_means,
        random_recall,
    )
    from ret_lightning.retrieval.metrics.relevance import (
        answer_hits,
        count_positives,
        count_relevant,
        has_answers,
        positive_hits,
        unreachable,
    )
    from ret_lightning.retrieval.ranking import Ranking
    from ret_lightning.retrieval.store.embedding_store import EmbeddingStore
    from ret_lightning.retrieval.store.embeddings import Embeddings
    from ret_lightning.retrieval.trec import read_qrels, read_ranking, read_run, write_qrels, write_run

__all__ = [
    "EmbeddingStore",
    "Embeddings",
    "ExactIndex",
    "FaissIndex",
    "FractionalRecallAtK",
    "Index",
    "MRRAtK",
    "MuveraIndex",
    "NDCGAtK",
    "PseudoRecallAtK",
    "QueryMetric",
    "Ranking",
    "RecallAtK",
    "answer_hits",
    "compare_rankings",
    "count_positives",
    "count_relevant",
    "draw_sample",
    "gather_at",
    "has_answers",
    "intervals",
    "judge",
    "measure_agreement",
    "positive_hits",
    "query_means",
    "random_recall",
    "read_qrels",
    "read_ranking",
    "read_run",
    "search_replicated",
    "search_sharded",
    "share_of",
    "unreachable",
    "write_qrels",
    "write_run",
]

_HOMES = {
    "metrics.agreement": (
        "compare_rankings",
        "draw_sample",
        "measure_agreement",
    ),
    "metrics.bootstrap": ("intervals",),
    "store.embeddings": ("Embeddings",),
    "indexes.exact": ("ExactIndex",),
    "indexes.faiss_index": ("FaissIndex",),
    "indexes.base": ("Index",),
    "metrics.per_query": ("judge",),
    "metrics.rank_metrics": (
        "FractionalRecallAtK",
        "MRRAtK",
        "NDCGAtK",
        "PseudoRecallAtK",
        "QueryMetric",
        "RecallAtK",
        "query_means",
        "random_recall",
    ),
    "indexes.muvera": ("MuveraIndex",),
    "ranking": ("Ranking",),
    "metrics.relevance": (
        "answer_hits",
        "count_positives",
        "count_relevant",
        "has_answers",
        "positive_hits",
        "unreachable",
    ),
    "distributed.replicated": ("gather_at", "search_replicated", "share_of"),
    "trec": (
        "read_qrels",
        "read_ranking",
        "read_run",
        "write_qrels",
        "write_run",
    ),
    "distributed.sharded": ("search_sharded",),
    "store.embedding_store": ("EmbeddingStore",),
}


def __getattr__(name: str) -> Any:
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

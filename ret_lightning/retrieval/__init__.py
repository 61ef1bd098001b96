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
    from ret_lightning.retrieval.agreement import compare_rankings, draw_sample, measure_agreement
    from ret_lightning.retrieval.bootstrap import intervals
    from ret_lightning.retrieval.embeddings import Embeddings
    from ret_lightning.retrieval.exact import ExactIndex
    from ret_lightning.retrieval.faiss_index import FaissIndex
    from ret_lightning.retrieval.index import Index
    from ret_lightning.retrieval.judging import judge
    from ret_lightning.retrieval.metrics import (
        FractionalRecallAtK,
        MRRAtK,
        NDCGAtK,
        PseudoRecallAtK,
        QueryMetric,
        RecallAtK,
        query_means,
        random_recall,
    )
    from ret_lightning.retrieval.muvera import MuveraIndex
    from ret_lightning.retrieval.ranking import Ranking
    from ret_lightning.retrieval.relevance import (
        answer_hits,
        count_positives,
        count_relevant,
        has_answers,
        positive_hits,
        unreachable,
    )
    from ret_lightning.retrieval.replicated import gather_at, search_replicated, share_of
    from ret_lightning.retrieval.runs import read_qrels, read_ranking, read_run, write_qrels, write_run
    from ret_lightning.retrieval.sharded import search_sharded
    from ret_lightning.retrieval.store import EmbeddingStore

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
    "agreement": (
        "compare_rankings",
        "draw_sample",
        "measure_agreement",
    ),
    "bootstrap": ("intervals",),
    "embeddings": ("Embeddings",),
    "exact": ("ExactIndex",),
    "faiss_index": ("FaissIndex",),
    "index": ("Index",),
    "judging": ("judge",),
    "metrics": (
        "FractionalRecallAtK",
        "MRRAtK",
        "NDCGAtK",
        "PseudoRecallAtK",
        "QueryMetric",
        "RecallAtK",
        "query_means",
        "random_recall",
    ),
    "muvera": ("MuveraIndex",),
    "ranking": ("Ranking",),
    "relevance": (
        "answer_hits",
        "count_positives",
        "count_relevant",
        "has_answers",
        "positive_hits",
        "unreachable",
    ),
    "replicated": ("gather_at", "search_replicated", "share_of"),
    "runs": (
        "read_qrels",
        "read_ranking",
        "read_run",
        "write_qrels",
        "write_run",
    ),
    "sharded": ("search_sharded",),
    "store": ("EmbeddingStore",),
}


def __getattr__(name: str) -> Any:
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

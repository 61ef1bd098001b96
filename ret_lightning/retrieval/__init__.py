"""Searching a pool of embeddings, and judging the rankings. Knows vectors and ids, not models or data sets.

`Embeddings` go into an `Index` (`ExactIndex`, `FaissIndex`), a search gives a `Ranking`, and the metrics and TREC files are
made from it. Importing this package does not import FAISS; building a `FaissIndex` does.
"""

from ret_lightning.retrieval.faiss_index import FaissIndex
from ret_lightning.retrieval.index import ExactIndex, Index
from ret_lightning.retrieval.metrics import (
    PseudoRecallAtK,
    RecallAtK,
    answer_hits,
    count_positives,
    has_answers,
    positive_hits,
    random_recall,
    unreachable,
)
from ret_lightning.retrieval.ranking import Ranking
from ret_lightning.retrieval.runs import read_run, write_qrels, write_run
from ret_lightning.retrieval.store import Embeddings

__all__ = [
    "Embeddings",
    "ExactIndex",
    "FaissIndex",
    "Index",
    "PseudoRecallAtK",
    "Ranking",
    "RecallAtK",
    "answer_hits",
    "count_positives",
    "has_answers",
    "positive_hits",
    "random_recall",
    "read_run",
    "unreachable",
    "write_qrels",
    "write_run",
]

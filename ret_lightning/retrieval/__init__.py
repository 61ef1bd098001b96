"""Searching a pool of embeddings, and judging the rankings. Knows vectors and ids, not models or data sets.

`Embeddings`, in memory or of an `EmbeddingStore` on disk, go into an `Index` (`ExactIndex`, `FaissIndex`, `MuveraIndex`), a
search gives a `Ranking`, and the metrics and TREC files are made from it; `measure_agreement` says how near an index comes
to exact search. Importing this package does not import FAISS; building an index that needs it does.
"""

from ret_lightning.retrieval.agreement import compare_rankings, draw_sample, measure_agreement
from ret_lightning.retrieval.embeddings import Embeddings
from ret_lightning.retrieval.exact import ExactIndex
from ret_lightning.retrieval.faiss_index import FaissIndex
from ret_lightning.retrieval.index import Index
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
from ret_lightning.retrieval.muvera import MuveraIndex
from ret_lightning.retrieval.ranking import Ranking
from ret_lightning.retrieval.runs import read_run, write_qrels, write_run
from ret_lightning.retrieval.store import EmbeddingStore

__all__ = [
    "EmbeddingStore",
    "Embeddings",
    "ExactIndex",
    "FaissIndex",
    "Index",
    "MuveraIndex",
    "PseudoRecallAtK",
    "Ranking",
    "RecallAtK",
    "answer_hits",
    "compare_rankings",
    "count_positives",
    "draw_sample",
    "has_answers",
    "measure_agreement",
    "positive_hits",
    "random_recall",
    "read_run",
    "unreachable",
    "write_qrels",
    "write_run",
]

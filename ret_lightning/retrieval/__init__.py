"""Searching a pool of embeddings, and judging the rankings. Knows vectors and ids, not models or data sets.

`Embeddings` go into an `Index` (`ExactIndex`, `FaissIndex`), a search gives a `Ranking`, and the metrics and TREC files are
made from it. Importing this package does not import FAISS; building a `FaissIndex` does.
"""

from ret_lightning.retrieval.bootstrap import intervals
from ret_lightning.retrieval.faiss_index import FaissIndex
from ret_lightning.retrieval.index import ExactIndex, Index
from ret_lightning.retrieval.judging import judge
from ret_lightning.retrieval.metrics import (
    MRRAtK,
    NDCGAtK,
    PseudoRecallAtK,
    QueryMetric,
    RecallAtK,
    query_means,
    random_recall,
)
from ret_lightning.retrieval.ranking import Ranking
from ret_lightning.retrieval.relevance import (
    answer_hits,
    count_positives,
    count_relevant,
    has_answers,
    positive_hits,
    unreachable,
)
from ret_lightning.retrieval.runs import read_qrels, read_ranking, read_run, write_qrels, write_run
from ret_lightning.retrieval.store import Embeddings

__all__ = [
    "Embeddings",
    "ExactIndex",
    "FaissIndex",
    "Index",
    "MRRAtK",
    "NDCGAtK",
    "PseudoRecallAtK",
    "QueryMetric",
    "Ranking",
    "RecallAtK",
    "answer_hits",
    "count_positives",
    "count_relevant",
    "has_answers",
    "intervals",
    "judge",
    "positive_hits",
    "query_means",
    "random_recall",
    "read_qrels",
    "read_ranking",
    "read_run",
    "unreachable",
    "write_qrels",
    "write_run",
]

"""Exact, FAISS and MUVERA indexes. Importing this package registers all of them by class name."""

from ret_lightning.retrieval.indexes.base import Index
from ret_lightning.retrieval.indexes.exact import ExactIndex
from ret_lightning.retrieval.indexes.faiss_index import FaissIndex
from ret_lightning.retrieval.indexes.muvera import MuveraIndex

__all__ = ["ExactIndex", "FaissIndex", "Index", "MuveraIndex"]

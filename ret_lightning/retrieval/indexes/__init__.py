"""Indexes: exact, FAISS and MUVERA, and how they are saved. All are imported together, so that each is known by its name."""

from ret_lightning.retrieval.indexes.base import Index
from ret_lightning.retrieval.indexes.exact import ExactIndex
from ret_lightning.retrieval.indexes.faiss_index import FaissIndex
from ret_lightning.retrieval.indexes.muvera import MuveraIndex

__all__ = ["ExactIndex", "FaissIndex", "Index", "MuveraIndex"]

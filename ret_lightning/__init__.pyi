from ._version import __version__ as __version__
from .data.m2kr_datamodule import M2KRDataModule as M2KRDataModule
from .evaluation.callback import RetrievalEvaluation as RetrievalEvaluation
from .models.retriever import RetRetriever as RetRetriever
from .training.module import RetModule as RetModule

"""Searching a pool of embeddings, and evaluating the rankings. Knows vectors and ids, not models or data sets.

`Embeddings`, in memory or of an `EmbeddingStore` on disk, go into an `Index` (`ExactIndex`, `FaissIndex`, `MuveraIndex`), a
search gives a `Ranking`, and the metrics and TREC files are made from it; `measure_ann_recall` compares an index with
exact search. Importing this package imports none of its modules: searching needs no torchmetrics, and metrics need no FAISS.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

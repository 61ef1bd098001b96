"""Searching a pool of embeddings, and judging the rankings. Knows vectors and ids, not models or data sets.

`Embeddings`, in memory or of an `EmbeddingStore` on disk, go into an `Index` (`ExactIndex`, `FaissIndex`, `MuveraIndex`), a
search gives a `Ranking`, and the metrics and TREC files are made from it; `measure_agreement` says how near an index comes
to exact search. Importing this package imports nothing: a search needs no torchmetrics, which takes seconds, and a metric no
FAISS.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

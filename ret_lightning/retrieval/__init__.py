"""Search over precomputed embeddings and evaluation of rankings.

Pass `Embeddings`, in memory or from an `EmbeddingStore` on disk, to an `Index` (`ExactIndex`, `FaissIndex`, `MuveraIndex`).
A search returns a `Ranking`, from which metrics and TREC files are computed. `measure_ann_recall` compares an approximate
index with exact search. The package works on vectors and ids; it does not depend on models or datasets. Submodules are
imported on first use: search does not need torchmetrics, and metrics do not need FAISS.
"""

import lazy_loader

from ret_lightning.runtime.deprecation import renamed_names

_RENAMED = {
    "draw_sample": "sample_queries",
    "gather_at": "gather_by_position",
    "intervals": "bootstrap_intervals",
    "judge": "evaluate_ranking",  # earlier name
    "measure_agreement": "measure_ann_recall",
    "share_of": "rank_slice",
}
_find, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__getattr__ = renamed_names(__name__, _RENAMED, _find)

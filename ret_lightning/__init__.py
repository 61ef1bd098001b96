"""ReT: train, ablate, evaluate and search with a recurrent multimodal late-interaction retriever."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

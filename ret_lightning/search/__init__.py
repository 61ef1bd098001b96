"""Search: passages encoded once, into a folder or into Qdrant, and queries answered from them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

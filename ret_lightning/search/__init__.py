"""Search: index passages into a folder or into Qdrant, and answer queries from the index."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

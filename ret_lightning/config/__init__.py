"""Check configs before a run starts, and build objects from an allow-list of targets."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

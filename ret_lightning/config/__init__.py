"""Configs that can be trusted: checked before a run starts, and built from an allow-list."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

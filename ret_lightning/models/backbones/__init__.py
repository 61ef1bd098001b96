"""Backbones of transformers and open_clip, which return the hidden states of their blocks."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Distributed training: collectives, a barrier without a short timeout, and the DDP strategy."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Training: the LightningModule and the learning rate; callbacks and checkpoints have packages of their own."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

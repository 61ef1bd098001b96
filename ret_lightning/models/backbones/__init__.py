"""Backbones: the states of their blocks, by transformers and by open_clip."""

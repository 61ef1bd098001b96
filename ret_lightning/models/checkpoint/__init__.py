"""Checkpoints of models: the published layout read and written, fingerprints, and the hub."""

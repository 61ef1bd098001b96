"""Checkpoints of a training run: written, chosen, and opened again."""

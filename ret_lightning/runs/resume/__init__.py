"""Resuming a run: its checkpoint, its config and its logs."""

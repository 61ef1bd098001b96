"""Resuming a run: from which checkpoint, with which config, and what its logs hold."""

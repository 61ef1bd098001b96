"""Embeddings in memory and in memory-mapped files."""

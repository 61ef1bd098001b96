"""Readers of row files: JSON Lines and parquet, sequentially or by row index."""

"""Files of rows: JSON Lines and parquet, read from front to back or by row number."""

"""Metrics of rankings: per-query metrics, their means and bootstrap intervals, and recall against exact search."""

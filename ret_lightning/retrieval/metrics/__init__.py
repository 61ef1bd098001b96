"""Metrics of rankings: per query, their means and intervals, and recall against exact search."""

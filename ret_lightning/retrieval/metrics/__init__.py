"""Metrics of rankings: per query, their means and intervals, and agreement with exact search."""

"""Matplotlib figures with literal texts, and fonts for any script."""

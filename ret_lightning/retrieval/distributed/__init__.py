"""Search over several ranks."""

"""Corpus checks of ret-check: read all rows and images as in training, and report the problems."""

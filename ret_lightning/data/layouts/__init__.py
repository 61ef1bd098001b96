"""Layouts of corpora on disk: their files and their subsets."""

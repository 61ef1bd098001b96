"""How corpora are laid out on disk: which file holds what, and which subsets there are."""

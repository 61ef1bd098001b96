"""The check of a config before anything is imported for it: every mistake with its file, line and remedy."""

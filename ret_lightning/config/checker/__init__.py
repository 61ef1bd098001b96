"""The check of a config before anything is imported for it: every problem with its file, line and remedy."""

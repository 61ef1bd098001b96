"""Checks of a config before its targets are imported. Every problem is reported with its file and line."""

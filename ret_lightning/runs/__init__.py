"""Runs: training, evaluation, export, resuming, sweep plans, loggers and run identity."""

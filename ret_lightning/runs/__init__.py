"""The course of a run: train, evaluate, export, resume; plans of sweeps, loggers, and what a run is known by."""

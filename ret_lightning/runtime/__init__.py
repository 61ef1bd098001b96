"""Runtime services for the whole package: files, locks, child processes, the console, the layout of a run folder."""

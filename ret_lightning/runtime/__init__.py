"""What every part of the package may use: files, locks, child processes, the console, the layout of a run folder."""

"""The console scripts, and the shell that they share."""

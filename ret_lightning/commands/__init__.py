"""Console scripts, and the application that they share."""

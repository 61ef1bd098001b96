"""Image sources: a folder, tar and zip archives that are read in place, and images stored in the rows."""

"""Where images come from: a folder, tar and zip archives read in place, or the rows themselves."""

"""The data: rows, files, images, batches, and the Lightning data modules."""

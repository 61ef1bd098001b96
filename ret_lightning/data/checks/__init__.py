"""What ret-check does: all rows and images of a corpus read by the parsers of training, and a report."""

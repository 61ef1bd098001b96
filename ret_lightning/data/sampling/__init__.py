"""Samplers of training and evaluation batches, the training mixture, and held-out rows."""

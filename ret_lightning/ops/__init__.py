"""Tensor operations: MaxSim with several backends, and linear layers on oneDNN."""

"""Several processes as one: collectives, the barrier, and the DDP strategy."""

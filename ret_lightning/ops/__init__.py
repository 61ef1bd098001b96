"""Operations on tensors: MaxSim and its backends, and linear maps by oneDNN."""

"""Training losses, and the MaxSim score that they use."""

from ret_lightning.losses.base import PADDING, EncodedBatch, LossOutput, RetrievalLoss, mean_over_rows
from ret_lightning.losses.contrastive import ContrastiveLoss
from ret_lightning.ops.maxsim import maxsim

__all__ = ["PADDING", "ContrastiveLoss", "EncodedBatch", "LossOutput", "RetrievalLoss", "maxsim", "mean_over_rows"]

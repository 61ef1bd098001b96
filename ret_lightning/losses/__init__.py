"""Scores and losses."""

from ret_lightning.losses.contrastive import PADDING, ContrastiveLoss, ContrastiveOutput
from ret_lightning.ops.maxsim import maxsim

__all__ = ["PADDING", "ContrastiveLoss", "ContrastiveOutput", "maxsim"]

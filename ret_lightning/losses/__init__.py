"""Scores and losses."""

from ret_lightning.losses.contrastive import PADDING, ContrastiveLoss, ContrastiveOutput
from ret_lightning.losses.maxsim import maxsim

__all__ = ["PADDING", "ContrastiveLoss", "ContrastiveOutput", "maxsim"]

"""Scores and losses."""

from ret_lightning.losses.contrastive import ContrastiveLoss, ContrastiveOutput
from ret_lightning.losses.maxsim import maxsim

__all__ = ["ContrastiveLoss", "ContrastiveOutput", "maxsim"]

"""Scored checkpoints in the layout of a run folder."""

from __future__ import annotations

from pathlib import Path

import torch
from omegaconf import OmegaConf

from ret_lightning.training.checkpointing.selection import SCORES

RECALL, MRR = "val/mean/recall@5", "val/mean/mrr@10"


def write_config(run: Path, monitor: str | None = RECALL, mode: str = "max") -> None:
    run.mkdir(exist_ok=True)
    callback = None if monitor is None else {"monitor": monitor, "mode": mode}
    OmegaConf.save(OmegaConf.create({"callbacks": {"checkpoint": callback}}), run / "config.yaml")


def write_checkpoint(run: Path, name: str, step: int, scores: dict[str, float] | None = None, **more: object) -> None:
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    content = {"state_dict": {}, "epoch": 0, "global_step": step, **({SCORES: scores} if scores else {}), **more}
    torch.save(content, run / "checkpoints" / name)

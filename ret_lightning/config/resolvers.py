"""The resolvers of ours that configs may use, `${name:argument,...}`."""

from __future__ import annotations

import math

from omegaconf import OmegaConf


def register() -> None:
    """Makes them known to OmegaConf; again does no harm."""
    OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)
    OmegaConf.register_new_resolver("unless_resumed", unless_resumed, replace=True)
    OmegaConf.register_new_resolver("product", product, replace=True)


def run_folder(resume: str | None, new: str) -> str:
    """The folder of a run: the one that is resumed, or a new one."""
    return new if resume in (None, "auto") else str(resume)


def unless_resumed(resume: str | None, value: str) -> str | None:
    """A value for a new run, null for one that is resumed."""
    return value if resume in (None, "auto") else None


def product(*factors: float) -> float:
    """Of numbers, so that one setting can follow another: `${product:1e-6,${data.batch_size}}`."""
    return math.prod(float(factor) for factor in factors)

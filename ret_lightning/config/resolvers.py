"""The resolvers of ours that configs may use, `${name:argument,...}`."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from omegaconf import OmegaConf

from ret_lightning.config.sweep_names import job_names


def register_resolvers() -> None:
    """Makes them known to OmegaConf; again does no harm."""
    OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)
    OmegaConf.register_new_resolver("unless_resumed", unless_resumed, replace=True)
    OmegaConf.register_new_resolver("product", product, replace=True)
    OmegaConf.register_new_resolver("job_name", job_name, replace=True)
    OmegaConf.register_new_resolver("expand_home", os.path.expanduser, replace=True)


def run_folder(resume: str | None, new: str) -> str:
    """The folder of a run: the one that is resumed, or a new one."""
    return new if resume in (None, "auto") else str(resume)


def unless_resumed(resume: str | None, value: str) -> str | None:
    """A value for a new run, null for one that is resumed."""
    return value if resume in (None, "auto") else None


def job_name(keys: Sequence[str], overrides: Sequence[str]) -> str:
    """What a job is called whose sweeper chooses values as it goes: the keys that vary, with the values of this job."""
    settings = dict(override.partition("=")[::2] for override in overrides)
    return job_names([{key: settings[key] for key in keys if key in settings}])[0]


def product(*factors: float) -> float:
    """Of numbers, so that one setting can follow another: `${product:1e-6,${data.batch_size}}`."""
    return math.prod(float(factor) for factor in factors)

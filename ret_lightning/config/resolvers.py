"""OmegaConf resolvers of this package, `${name:argument,...}`."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import omegaconf
from omegaconf import OmegaConf

from ret_lightning.config.sweep_names import job_names


def register_resolvers() -> None:
    """Register the resolvers with OmegaConf, replacing earlier registrations."""
    is_old = omegaconf.__version__.startswith("2.3.")  # its register_resolver has another signature
    register: Any = OmegaConf.register_new_resolver if is_old else OmegaConf.register_resolver
    register("run_folder", run_folder, replace=True)
    register("unless_resumed", unless_resumed, replace=True)
    register("product", product, replace=True)
    register("job_name", job_name, replace=True)
    register("expand_home", os.path.expanduser, replace=True)


def run_folder(resume: str | None, new: str) -> str:
    """Return the folder of a run: the resumed folder, or `new` for a new run."""
    return new if resume in (None, "auto") else str(resume)


def unless_resumed(resume: str | None, value: str) -> str | None:
    """Return `value` for a new run and None for a resumed run."""
    return value if resume in (None, "auto") else None


def job_name(keys: Sequence[str], overrides: Sequence[str]) -> str:
    """Return the name of a job from the values that its overrides set for `keys`.

    For sweepers that choose values during the sweep, such as Optuna.
    """
    settings = dict(override.partition("=")[::2] for override in overrides)
    return job_names([{key: settings[key] for key in keys if key in settings}])[0]


def product(*factors: float) -> float:
    """Return the product of numbers, for settings that scale with another one: `${product:1e-6,${data.batch_size}}`."""
    return math.prod(float(factor) for factor in factors)

"""Jobs of a sweep, with real configs, before they run."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

from ret_lightning.config.sweeping import PlannedJob
from tests.support.report_runs import resolved


def planned_job(folder: Path, *overrides: str) -> PlannedJob:
    config, choices = resolved(("data=m2kr", "data.root=/no/such/corpus", "logger=csv", *overrides))
    config = OmegaConf.create(OmegaConf.to_yaml(OmegaConf.create(config)).replace("/made/here", str(folder)))
    return PlannedJob(folder.name, folder, {}, overrides, config, choices)

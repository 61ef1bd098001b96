"""Fixtures for the tests of resuming."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A moved run folder, whose config has the earlier path."""
    folder = tmp_path / "run"
    folder.mkdir()
    config = {
        "seed": 1,
        "output_dir": "/old/run",
        "resume": None,
        "data": {"root": "/data", "batch_size": 8, "num_workers": 0},
        "retrieval": {"_target_": "x.Index", "nprobe": 4},
        "evaluation": {"index": {"_target_": "x.Index", "nprobe": 4}},
        "trainer": {"max_epochs": 3, "strategy": {"config_file": "/old/run/config.yaml"}},
        "callbacks": {
            "checkpoint": {
                "_target_": "lightning.pytorch.callbacks.ModelCheckpoint",
                "dirpath": "/old/run/checkpoints",
            },
            "other": "/old/running",
        },
    }
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    return folder

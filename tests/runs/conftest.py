"""Fixtures for the tests of runs."""

from __future__ import annotations

import pytest
from omegaconf import DictConfig, OmegaConf

from tests.support.small_runs import Trained


@pytest.fixture
def config(trained: Trained) -> DictConfig:
    """The config of a small trained run."""
    return OmegaConf.load(trained.run / "config.yaml")

"""Fixtures for checkpoints."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.tiny_models import BY_NAME


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that copies a checkpoint of tests/assets, so that a test can modify it."""

    def copied(name: str) -> Path:
        return Path(shutil.copytree(BY_NAME[name], tmp_path / name))

    return copied

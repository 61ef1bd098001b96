"""Copies of the checkpoints in tests/assets."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.tiny_models import BY_NAME


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a checkpoint that may be broken."""

    def copied(name: str) -> Path:
        return Path(shutil.copytree(BY_NAME[name], tmp_path / name))

    return copied

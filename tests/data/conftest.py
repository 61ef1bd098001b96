"""Fixtures of the tests of files and caches."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def blocked(tmp_path: Path) -> Path:
    """A folder that cannot be created, not by root either: its parent is a file."""
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "cache"

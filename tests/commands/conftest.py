"""Fixtures for the tests of the commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.m2kr_folder import write_folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small corpus, not modified by tests."""
    return write_folder(tmp_path_factory.mktemp("corpus") / "m2kr")

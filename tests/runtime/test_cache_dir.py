"""The cache folder follows the XDG Base Directory Specification."""

from __future__ import annotations

from pathlib import Path

import pytest

from ret_lightning.runtime.cache_dir import default_cache_dir


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        ("/data/cache", "/data/cache/ret_lightning"),
        (None, "/home/me/.cache/ret_lightning"),
        ("", "/home/me/.cache/ret_lightning"),
        ("relative/cache", "/home/me/.cache/ret_lightning"),  # the specification requires it to be ignored
    ],
)
def test_cache_dir_follows_environment(variable: str | None, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if variable is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", variable)
    assert default_cache_dir() == Path(expected)

"""Errors of unwritable caches and temporary folders name the environment variable that changes the folder."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from ret_lightning.errors import UserError
from ret_lightning.runtime.cache_errors import cache_error

DEFAULTS = {
    "HF_DATASETS_CACHE": "home/.cache/huggingface/datasets",
    "HF_HUB_CACHE": "home/.cache/huggingface/hub",
    "HF_HOME": "home/.cache/huggingface",
    "TRITON_CACHE_DIR": "home/.triton",
    "WANDB_CACHE_DIR": "home/.cache/wandb",
    "XDG_CACHE_HOME": "home/.cache",
    "TMPDIR": "tmp/tmp1234",
}
CODES = [errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.ENOSPC]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in DEFAULTS:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "tmp"))


@pytest.mark.parametrize("variable", DEFAULTS)
@pytest.mark.parametrize("named", [False, True])
def test_cache_error_names_variable(
    variable: str, named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("elsewhere/cache" if named and variable != "TMPDIR" else DEFAULTS[variable])
    if named and variable != "TMPDIR":
        monkeypatch.setenv(variable, str(folder))
    for code in CODES:
        error = cache_error(OSError(code, "reason", str(folder / "sub/file")))
        assert (error.code, error.variable, error.path) == ("cache-not-writable", variable, folder / "sub/file")
        assert "(reason)" in error.message


def test_cache_error_searches_causes(tmp_path: Path) -> None:
    wrapped = RuntimeError("backend failed")
    wrapped.__cause__ = PermissionError(errno.EACCES, "denied", str(tmp_path / "home/.triton/x"))
    assert cache_error(wrapped).variable == "TRITON_CACHE_DIR"


def test_missing_temporary_folder_names_tmpdir() -> None:
    error = cache_error(FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"))
    assert (error.code, error.variable) == ("temporary-folder-not-writable", "TMPDIR")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EACCES, "denied", "/data/x"),
        OSError(errno.EEXIST, "exists", str(Path("/tmp/work/x"))),
        OSError(errno.EACCES, "denied"),
        UserError("x", code="x"),
        ValueError("x"),
    ],
)
def test_other_errors_are_not_cache_errors(error: Exception) -> None:
    assert cache_error(error) is None


def test_missing_file_is_not_a_cache_error(tmp_path: Path) -> None:
    assert cache_error(FileNotFoundError(errno.ENOENT, "no such file", str(tmp_path / "home/.cache/x"))) is None

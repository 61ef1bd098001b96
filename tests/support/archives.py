"""Tar and zip archives of given members, and the error that an action raises."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from ret_lightning.errors import DataError


def write_tar(path: Path, members: dict[str, bytes], form: int = tarfile.PAX_FORMAT, mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, format=form) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def error_of(action, *arguments) -> DataError:
    with pytest.raises(DataError) as error:
        action(*arguments)
    assert "\n" not in str(error.value)
    return error.value

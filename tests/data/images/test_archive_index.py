"""Index of image archives: caching, content and path normalization."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from ret_lightning.data.images import archive_index
from ret_lightning.data.images.archive_index import (
    build_index_files,
    hash_name,
    normalize_image_path,
    normalize_member_name,
)
from ret_lightning.data.images.archives import ImageArchives
from ret_lightning.errors import DataError
from ret_lightning.inputs.near_names import NearMatches
from tests.support.archives import error_of, write_tar, write_zip


def test_unwritable_cache_error_names_variable(tmp_path: Path, blocked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    (tmp_path / "a.tar").write_bytes(bytes(10240))
    with pytest.raises(DataError) as caught:
        build_index_files([tmp_path / "a.tar"])
    assert caught.value.code == "archive-cache-not-written"
    assert "XDG_CACHE_HOME" in caught.value.message


def test_last_member_of_first_archive_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tar(tmp_path / "b.tar", {"x.jpg": b"old", "y.jpg": b"y"})
    write_tar(tmp_path / "b.tar", {"./x.jpg": b"new"}, mode="a")
    with tarfile.open(tmp_path / "b.tar") as archive:
        assert archive.extractfile(archive.getmember("./x.jpg")).read() == b"new"
    write_zip(tmp_path / "a.zip", {"x.jpg": b"other", "z.jpg": b"z"})
    with caplog.at_level(logging.WARNING):
        archives = ImageArchives([tmp_path / "b.tar", tmp_path / "a.zip"])
    assert [archives.read(name) for name in ("x.jpg", "y.jpg", "z.jpg")] == [b"new", b"y", b"z"]
    assert len(archives) == 3
    assert (
        f"1 image names occur in several archives, of which the first is used; the first such name is in {tmp_path}/b.tar"
        in caplog.text
    )
    assert ImageArchives([tmp_path / "a.zip", tmp_path / "b.tar"]).read("x.jpg") == b"other"


def test_index_is_rebuilt_when_archive_changes(tmp_path: Path, cache: Path) -> None:
    archive = write_tar(tmp_path / "images.tar", {"a.jpg": b"a"})
    first = build_index_files([archive])[0]
    made = first.stat().st_mtime_ns
    assert build_index_files([archive])[0] == first
    assert first.stat().st_mtime_ns == made
    write_tar(archive, {"a.jpg": b"A", "b.jpg": b"b"})
    assert ImageArchives([archive]).read("a.jpg") == b"A"
    assert not first.exists()
    changed = build_index_files([archive])[0]
    os.utime(archive, ns=(0, 0))
    assert build_index_files([archive])[0] != changed
    assert len(list(cache.glob("*.npy"))) == 2
    assert not [path for path in cache.iterdir() if path.suffix not in (".npy", ".lock")]


def test_index_of_other_version_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = write_tar(tmp_path / "images.tar", {"a.jpg": b"a"})
    monkeypatch.setattr(archive_index, "VERSION", archive_index.VERSION - 1)
    old = build_index_files([archive])
    for file in old:
        file.write_bytes(b"an array of other columns")
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert ImageArchives([archive]).read("a.jpg") == b"a"
    assert not set(old) & set(build_index_files([archive]))


def test_incomplete_index_is_rebuilt(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "images.tar", {"a.jpg": b"a"})
    for file in build_index_files([archive]):
        file.unlink()
        assert error_of(ImageArchives([archive]).read, "A.jpg").near == ("a.jpg",)


def test_index_is_small_and_memory_mapped(tmp_path: Path) -> None:
    members = {f"sub/{i}.jpg": b"" for i in range(1000)}
    archives = ImageArchives([write_zip(tmp_path / "images.zip", members)])
    index, near = (file.stat().st_size for file in archives._index_files)
    assert index < 40 * 1000 + 200
    assert near < 32 * 1000 + 200
    assert isinstance(archives._index.base, np.memmap)
    assert isinstance(archives._near.base, np.memmap)


def test_cache_path_that_is_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    archive = write_tar(tmp_path / "images.tar", {"a.jpg": b"a"})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    error = error_of(ImageArchives, [archive])
    assert (error.code, error.reason) == ("archive-cache-not-written", "Not a directory")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/b.jpg", "a/b.jpg"),
        ("./a//b.jpg", "a/b.jpg"),
        ("a/x/../b.jpg", "a/b.jpg"),
        ("/a/b.jpg", "a/b.jpg"),
        ("", "."),
    ],
)
def test_equivalent_paths_have_one_member_name(path: str, name: str) -> None:
    assert normalize_member_name(path) == name


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("../b.jpg", "image-path-outside"),
        ("a/../../b.jpg", "image-path-outside"),
        ("/a/b.jpg", "image-path-outside"),
        ("..", "image-path-outside"),
        ("a/..", "image-path-empty"),
        ("a\0.jpg", "image-path-null-character"),
    ],
)
def test_path_outside_root_is_refused(path: str, code: str) -> None:
    error = error_of(normalize_image_path, path, "images", lambda _: NearMatches(()))
    assert (error.code, error.image) == (code, path)
    assert normalize_image_path("..a/b.jpg", "images", lambda _: NearMatches(())) == "..a/b.jpg"


def test_hash_name_is_blake2b() -> None:
    digest = hashlib.blake2b("ü/b.jpg".encode(), digest_size=16).digest()
    assert hash_name("ü/b.jpg") == (int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little"))
    assert hash_name("\udcff.jpg") != hash_name("?.jpg")  # bytes that are not valid UTF-8


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_archive_that_cannot_be_read_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    archive = write_tar(tmp_path / "images.tar", {"a.jpg": b"a"})

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(archive_index, "_read_entries", fail)
    error = error_of(build_index_files, [archive])
    assert (error.code, error.path, error.reason) == ("archive-not-read", str(archive), os.strerror(number))
    assert error.message.startswith(f"image archive {archive}: ")

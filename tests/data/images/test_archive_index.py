"""The index of image archives: made once, renewed when an archive changes, and mapped into memory."""

from __future__ import annotations

import hashlib
import logging
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from ret_lightning.data.images import archive_index
from ret_lightning.data.images.archive_index import index_files, member_name, name_hash, path_inside
from ret_lightning.data.images.archives import ImageArchives
from ret_lightning.errors import DataError
from ret_lightning.inputs.near_names import Near
from tests.support.archives import error_of, write_tar, write_zip


def test_archive_index_names_variable(tmp_path: Path, blocked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    (tmp_path / "a.tar").write_bytes(bytes(10240))
    with pytest.raises(DataError) as caught:
        index_files([tmp_path / "a.tar"])
    assert caught.value.code == "archive-cache-not-written"
    assert "XDG_CACHE_HOME" in caught.value.message


def test_of_equal_names_the_last_in_an_archive_and_the_first_archive_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
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
        f"1 names occur in several image archives, of which the first counts; one of them is in {tmp_path}/b.tar"
        in caplog.text
    )
    assert ImageArchives([tmp_path / "a.zip", tmp_path / "b.tar"]).read("x.jpg") == b"other"


def test_the_index_is_made_once_and_again_when_an_archive_changes(tmp_path: Path, cache: Path) -> None:
    archive = write_tar(tmp_path / "images.tar", {"a.jpg": b"a"})
    first = index_files([archive])[0]
    made = first.stat().st_mtime_ns
    assert index_files([archive])[0] == first
    assert first.stat().st_mtime_ns == made
    write_tar(archive, {"a.jpg": b"A", "b.jpg": b"b"})
    assert ImageArchives([archive]).read("a.jpg") == b"A"
    assert not first.exists()
    changed = index_files([archive])[0]
    os.utime(archive, ns=(0, 0))
    assert index_files([archive])[0] != changed
    assert len(list(cache.glob("*.npy"))) == 2
    assert not [path for path in cache.iterdir() if path.suffix not in (".npy", ".lock")]


def test_an_index_of_another_version_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = write_tar(tmp_path / "images.tar", {"a.jpg": b"a"})
    monkeypatch.setattr(archive_index, "VERSION", archive_index.VERSION - 1)
    old = index_files([archive])
    for file in old:
        file.write_bytes(b"an array of other columns")
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert ImageArchives([archive]).read("a.jpg") == b"a"
    assert not set(old) & set(index_files([archive]))


def test_half_an_index_is_made_again(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "images.tar", {"a.jpg": b"a"})
    for file in index_files([archive]):
        file.unlink()
        assert error_of(ImageArchives([archive]).read, "A.jpg").near == ("a.jpg",)


def test_an_index_takes_40_bytes_a_member_and_is_mapped(tmp_path: Path) -> None:
    members = {f"sub/{i}.jpg": b"" for i in range(1000)}
    archives = ImageArchives([write_zip(tmp_path / "images.zip", members)])
    index, near = (file.stat().st_size for file in archives._index_files)
    assert index < 40 * 1000 + 200
    assert near < 32 * 1000 + 200
    assert isinstance(archives._index.base, np.memmap)
    assert isinstance(archives._near.base, np.memmap)


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_spellings_of_a_path_are_one_name(path: str, name: str) -> None:
    assert member_name(path) == name


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
def test_path_that_leaves_the_root_is_refused(path: str, code: str) -> None:
    error = error_of(path_inside, path, "images", lambda _: Near(()))
    assert (error.code, error.image) == (code, path)
    assert path_inside("..a/b.jpg", "images", lambda _: Near(())) == "..a/b.jpg"


def test_hash_of_a_name_is_its_blake2b() -> None:
    digest = hashlib.blake2b("ü/b.jpg".encode(), digest_size=16).digest()
    assert name_hash("ü/b.jpg") == (int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little"))
    assert name_hash("\udcff.jpg") != name_hash("?.jpg")  # bytes that are no UTF-8

"""Images in tar and zip archives: content, processes and threads, and errors."""

from __future__ import annotations

import io
import logging
import multiprocessing
import os
import pickle
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ret_lightning.data.images.archives import MAX_OPEN_ARCHIVES, ImageArchives
from ret_lightning.errors import DataError
from tests.support.archives import error_of, write_tar, write_zip

LONG = "d" * 90 + "/" + "é" * 120 + ".jpg"  # more than a tar header's 100 characters
MEMBERS = {f"sub/{i}.jpg": bytes([i]) * (i * 37) for i in range(1, 40)} | {
    LONG: b"long",
    "empty.jpg": b"",
    "ü ñ.jpg": b"u",
}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_members_are_read_in_place(tmp_path: Path, form: int) -> None:
    members = {name: content for name, content in MEMBERS.items() if name != LONG or form != tarfile.USTAR_FORMAT}
    archives = ImageArchives([write_tar(tmp_path / "images.tar", members, form)])
    assert len(archives) == len(members)
    assert {name: archives.read(name) for name in members} == members


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_members_are_read_in_place(tmp_path: Path, method: int) -> None:
    archives = ImageArchives([write_zip(tmp_path / "images.ZIP", MEMBERS, method)])
    assert {name: archives.read(name) for name in MEMBERS} == MEMBERS


def test_zip_written_as_stream(tmp_path: Path) -> None:
    """The sizes are stored after the contents, not in the local headers."""

    class Stream(io.RawIOBase):
        def __init__(self) -> None:
            self.content = b""

        def writable(self) -> bool:
            return True

        def write(self, content) -> int:
            self.content += bytes(content)
            return len(content)

    stream = Stream()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in MEMBERS.items():
            archive.writestr(name, content)
    (tmp_path / "images.zip").write_bytes(stream.content)
    archives = ImageArchives([tmp_path / "images.zip"])
    assert {name: archives.read(name) for name in MEMBERS} == MEMBERS


def test_equivalent_paths_find_member(tmp_path: Path) -> None:
    folder = tmp_path / "tree"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub/1.jpg").write_bytes(b"one")
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        archive.add(folder, ".")
        assert "./sub/1.jpg" in archive.getnames()
    archives = ImageArchives([tmp_path / "images.tar"])
    for path in ("sub/1.jpg", "./sub/1.jpg", "sub//1.jpg", "other/../sub/1.jpg"):
        assert archives.read(path) == b"one"
    assert len(archives) == 1
    assert error_of(archives.read, "sub").code == "archive-image-missing"


def test_threads_read_more_archives_than_stay_open(tmp_path: Path) -> None:
    count = MAX_OPEN_ARCHIVES + 20
    archives = ImageArchives([write_tar(tmp_path / f"{i}.tar", {f"{i}.jpg": str(i).encode()}) for i in range(count)])
    names = [str(i) for i in np.random.default_rng(0).integers(0, count, 2000)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda name: archives.read(f"{name}.jpg"), names)) == [n.encode() for n in names]
    opened = [link for link in Path("/proc/self/fd").iterdir() if os.path.realpath(link).startswith(str(tmp_path))]
    assert len(opened) <= MAX_OPEN_ARCHIVES + 9  # the index is mapped, and each thread may exceed the limit by one


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_archives_are_read_in_other_processes(tmp_path: Path, method: str) -> None:
    archives = ImageArchives(
        [write_tar(tmp_path / "a.tar", MEMBERS), write_zip(tmp_path / "b.zip", {"zip.jpg": b"zip"})]
    )
    assert archives.read("zip.jpg") == b"zip"  # opens a file, whose position a forked process shares
    names = [*MEMBERS, "zip.jpg"] * 20
    with multiprocessing.get_context(method).Pool(2) as pool:
        read = pool.map(archives.read, names, chunksize=7)
    assert read == [(MEMBERS | {"zip.jpg": b"zip"})[name] for name in names]
    assert len(pickle.dumps(archives)) < 1000


# Errors.


def test_truncated_or_invalid_archive_is_refused(tmp_path: Path) -> None:
    contents = {f"{i}.jpg": np.random.default_rng(i).bytes(3000) for i in range(9)}
    for write, name in ((write_tar, "a.tar"), (write_zip, "a.zip")):
        whole = write(tmp_path / name, contents).read_bytes()
        for cut in (0, 10, 600, len(whole) // 2):
            torn = tmp_path / f"torn{cut}{name}"
            torn.write_bytes(whole[:cut])
            error = error_of(ImageArchives, [torn])
            assert error.kind == "broken_archive"
            assert (error.code, error.path) == ("archive-broken", str(torn))
    (tmp_path / "gzip.tar").write_bytes(write_tar(tmp_path / "b.tar.gz", contents, mode="w:gz").read_bytes())
    for name, code in (
        ("gzip.tar", "archive-broken"),
        ("b.tar.gz", "archive-compressed"),
        ("none.tar", "archive-missing"),
        ("a.rar", "archive-compressed"),
        ("a.iso", "archive-suffix-unknown"),
    ):
        assert error_of(ImageArchives, [tmp_path / name]).code == code
    assert error_of(ImageArchives, [tmp_path / "A.tar"]).near == (str(tmp_path / "a.tar"),)
    write_tar(tmp_path / "nothing.tar", {})
    assert error_of(ImageArchives, [tmp_path / "nothing.tar"]).code == "archive-empty"


def encrypt(path: Path, name: str) -> None:
    """Set the encryption flag in both headers of a member."""
    content = bytearray(path.read_bytes())
    for signature, flags, begin in ((b"PK\3\4", 6, 30), (b"PK\1\2", 8, 46)):
        at = next(
            at
            for at in range(len(content))
            if content[at : at + 4] == signature and content[at + begin :].startswith(name.encode())
        )
        content[at + flags] |= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("method", "found"),
    [
        (zipfile.ZIP_BZIP2, "compressed by bzip2"),
        (zipfile.ZIP_LZMA, "compressed by lzma"),
        (zipfile.ZIP_STORED, "encrypted"),
    ],
)
def test_unsupported_member_is_refused(tmp_path: Path, method: int, found: str) -> None:
    path = write_zip(tmp_path / "a.zip", {"a.jpg": b"a", "b.jpg": b"b"})
    with zipfile.ZipFile(path, "a", method) as archive:
        archive.writestr("other.jpg", b"c")
    if method == zipfile.ZIP_STORED:
        encrypt(path, "other.jpg")
    archives = ImageArchives([path, write_tar(tmp_path / "b.tar", {"c.jpg": b"c"})])
    assert [archives.read(name) for name in ("a.jpg", "b.jpg", "c.jpg")] == [b"a", b"b", b"c"]
    for action in (archives.read, archives.find):
        error = error_of(action, "other.jpg")
        assert (error.code, error.found, error.path) == ("archive-member-unsupported", found, str(path))


def test_tar_truncated_between_members_logs_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = write_tar(tmp_path / "whole.tar", {f"{i}.jpg": bytes(512) for i in range(4)}, tarfile.USTAR_FORMAT)
    (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[: 2 * 1024])
    with caplog.at_level(logging.WARNING):
        assert len(ImageArchives([whole])) == 4
        assert not caplog.messages
        assert len(ImageArchives([tmp_path / "cut.tar"])) == 2
    (message,) = caplog.messages
    assert message.startswith(f"image archive {tmp_path}/cut.tar: ")
    assert "truncated" in message


def test_archive_changed_while_open_is_refused(tmp_path: Path) -> None:
    for write, name, options in ((write_tar, "a.tar", {}), (write_zip, "a.zip", {"method": zipfile.ZIP_DEFLATED})):
        archives = ImageArchives([write(tmp_path / name, {"a.jpg": bytes(range(256)) * 40}, **options)])
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:60])
        error = error_of(archives.read, "a.jpg")
        assert error.kind == "unreadable_image"
        assert (error.code, error.path) == ("archive-member-broken", str(tmp_path / name))
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        content = write_zip(tmp_path / "a.zip", {"a.jpg": bytes(range(256)) * 40}, method).read_bytes()
        archives = ImageArchives([tmp_path / "a.zip"])
        assert archives.read("a.jpg") == bytes(range(256)) * 40
        (tmp_path / "a.zip").write_bytes(content[:45] + bytes(100) + content[145:])
        assert error_of(archives.read, "a.jpg").kind == "unreadable_image"
    archives = ImageArchives([tmp_path / "a.zip"])
    (tmp_path / "a.zip").unlink()
    assert error_of(archives.read, "a.jpg").kind == "unreadable_image"


def test_missing_member_is_reported(tmp_path: Path) -> None:
    paths = [write_tar(tmp_path / f"{name}.tar", {f"{name}.jpg": b""}) for name in "ab"]
    for count, others in ((1, ""), (2, " or 1 other archive"), (3, " or 2 other archives")):
        error = error_of(ImageArchives([*paths, *paths][:count]).find, "c.jpg")
        assert error.message == f"image 'c.jpg' is not in {tmp_path}/a.tar{others}"
    archives = ImageArchives(paths)
    for name in ("c.jpg", "c/d.jpg", "\ud800.jpg"):
        error = error_of(archives.read, name)
        assert (error.kind, error.code, error.image, error.near) == ("missing_image", "archive-image-missing", name, ())


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 20_000), st.binary(min_size=1, max_size=6)), max_size=5),
    st.floats(0, 1),
)
def test_damaged_archive_is_read_or_data_error(tmp_path: Path, tar: bool, changes, share: float) -> None:
    path = (
        write_tar(tmp_path / "a.tar", MEMBERS) if tar else write_zip(tmp_path / "a.zip", MEMBERS, zipfile.ZIP_DEFLATED)
    )
    data = bytearray(path.read_bytes())
    for position, new in changes:
        position %= len(data)
        data[position : position + len(new)] = new
    path.write_bytes(data[: round(share * len(data))] if share > 0.7 else data)
    try:
        archives = ImageArchives([path])
    except DataError as error:
        assert error.kind == "broken_archive"
        return
    for name in MEMBERS:
        try:
            archives.read(name)
        except DataError as error:
            assert error.kind in ("missing_image", "unreadable_image", "path_outside")

"""Names in zip archives: UTF-8 with and without flag, Info-ZIP's extra field, code page 437, and ambiguous names."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import unicodedata
import zlib
from pathlib import Path
from typing import NamedTuple

import pytest

from ret_lightning.data.images.archives import ImageArchives
from ret_lightning.inputs.near_names import describe_difference
from tests.support.archives import error_of

UTF8_FLAG = 0x800


class Raw(NamedTuple):
    """A stored member: undecoded name, content, flags and extra field."""

    name: bytes
    content: bytes = b"content"
    flags: int = 0
    extra: bytes = b""


def unicode_path(name: str, of: bytes, version: int = 1) -> bytes:
    """Return Info-ZIP's extra field for a raw name."""
    data = bytes([version]) + struct.pack("<I", zlib.crc32(of)) + name.encode()
    return b"UT\x05\0\1\0\0\0\0" + struct.pack("<HH", 0x7075, len(data)) + data


def write_raw_zip(path: Path, members: list[Raw]) -> Path:
    """Write a zip without zipfile, which sets the UTF-8 flag automatically."""
    body, directory = b"", b""
    for name, content, flags, extra in members:
        state = struct.pack("<HHHHIII", flags, 0, 0, 0x21, zlib.crc32(content), len(content), len(content))
        lengths = struct.pack("<HH", len(name), len(extra))
        directory += b"PK\1\2\x1e\x03\x14\0" + state + lengths + struct.pack("<HHHII", 0, 0, 0, 0o644 << 16, len(body))
        directory += name + extra
        body += b"PK\3\4\x14\0" + state + lengths + name + extra + content
    count = len(members)
    path.write_bytes(
        body + directory + struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, count, count, len(directory), len(body), 0)
    )
    return path


NFC, NFD = (unicodedata.normalize(form, "über/Å.png") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("member", "name"),
    [
        pytest.param(Raw(NFC.encode(), flags=UTF8_FLAG), NFC, id="UTF-8 with flag"),
        pytest.param(Raw(NFC.encode()), NFC, id="UTF-8 without flag"),
        pytest.param(Raw(NFD.encode()), NFD, id="decomposed, as written by macOS"),
        pytest.param(Raw("日本語.png".encode()), "日本語.png", id="Japanese"),
        pytest.param(Raw("üüß.png".encode("cp437")), "üüß.png", id="code page 437"),
        pytest.param(Raw(b"_ber.png", extra=unicode_path("über.png", b"_ber.png")), "über.png", id="extra field"),
        pytest.param(Raw(b"#U00fc", extra=unicode_path("ü", b"other")), "#U00fc", id="extra field of another name"),
        pytest.param(Raw(b"ascii", extra=unicode_path("ü", b"ascii", 2)), "ascii", id="extra field of another version"),
        pytest.param(Raw(b"plain/a.png"), "plain/a.png", id="ASCII"),
    ],
)
def test_names_in_all_encodings(tmp_path: Path, member: Raw, name: str) -> None:
    archives = ImageArchives([write_raw_zip(tmp_path / "images.zip", [member])])
    assert archives.read(name) == b"content"
    assert error_of(archives.read, "x" + name.upper()).near == ()
    assert error_of(archives.read, name.upper() if name.isascii() else "folder/" + name).near == (name,)


@pytest.mark.skipif(shutil.which("zip") is None or shutil.which("unzip") is None, reason="Info-ZIP is not installed")
@pytest.mark.parametrize("options", [[], ["-UN=UTF8"]])
def test_names_written_by_info_zip(tmp_path: Path, options: list[str]) -> None:
    tree = tmp_path / "tree"
    (tree / "Ordner ä").mkdir(parents=True)
    names = ["über.png", "Ordner ä/" + NFD.partition("/")[2], "日本語.png", "plain.png"]
    for name in names:
        (tree / name).write_bytes(name.encode())
    utf8 = os.environ | {"LC_ALL": "C.UTF-8"}
    subprocess.run(["zip", "-qr", *options, tmp_path / "images.zip", "."], cwd=tree, check=True, env=utf8)
    archives = ImageArchives([tmp_path / "images.zip"])
    assert {name: archives.read(name).decode() for name in names} == {name: name for name in names}
    subprocess.run(["unzip", "-q", "images.zip", "-d", "out"], cwd=tmp_path, check=True, env=utf8)
    assert all((tmp_path / "out" / name).read_bytes() == name.encode() for name in names)


def test_members_with_equal_decoded_name_are_refused(tmp_path: Path) -> None:
    raw = [name.encode(encoding) for name, encoding in (("ü.png", "utf-8"), ("ü.png", "cp437"))]
    members = [Raw(raw[0], b"1"), Raw(raw[1], b"2"), Raw(b"a.png", b"3"), Raw(raw[0], b"4")]
    archives = ImageArchives([write_raw_zip(tmp_path / "images.zip", members)])
    for action in (archives.read, archives.find):
        error = error_of(action, "ü.png")
        assert (error.kind, error.code) == ("unreadable_image", "archive-name-ambiguous")
        assert (error.image, error.found) == ("ü.png", tuple(raw))
    assert archives.read("a.png") == b"3"


def test_repeated_raw_name_is_not_ambiguous(tmp_path: Path) -> None:
    members = [Raw("ü.png".encode(), b"1"), Raw("ü.png".encode(), b"2", UTF8_FLAG)]
    assert ImageArchives([write_raw_zip(tmp_path / "images.zip", members)]).read("ü.png") == b"2"


def test_macos_metadata_members_do_not_clash(tmp_path: Path) -> None:
    members = [
        Raw(b"sub/1.png", b"image"),
        Raw(b"__MACOSX/sub/._1.png", b"resource fork"),
        Raw(b"sub/.DS_Store", b""),
        Raw(b"__MACOSX/._sub", b"resource fork"),
    ]
    archives = ImageArchives([write_raw_zip(tmp_path / "images.zip", members)])
    assert archives.read("sub/1.png") == b"image"
    assert archives.read("__MACOSX/sub/._1.png") == b"resource fork"
    assert error_of(archives.read, "sub/1.PNG").near == ("sub/1.png",)
    assert error_of(archives.read, "1.png").near == ("sub/1.png",)


def test_other_unicode_normalisation_is_near_match(tmp_path: Path) -> None:
    archives = ImageArchives([write_raw_zip(tmp_path / "images.zip", [Raw(NFD.encode())])])
    error = error_of(archives.read, NFC)
    assert error.near == (NFD,)
    assert describe_difference(NFC, NFD) == "Unicode normalisation"
    assert "(Unicode normalisation)" in error.message

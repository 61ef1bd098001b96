"""Members of tar and zip archives: names, positions of their content, and data that only their headers contain."""

from __future__ import annotations

import logging
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

# How a member is read. LINK and SPARSE members of a tar and AMBIGUOUS ones are read through their header, see `Member.offset`.
# UNSUPPORTED members of a zip cannot be read in place: they are encrypted, or use another compression than deflate.
DEFLATED, LINK, SPARSE, AMBIGUOUS, UNSUPPORTED = 1, 2, 4, 8, 16

_UTF8_NAME = 0x800  # flag of a zip member
_UNICODE_PATH = 0x7075  # id of Info-ZIP's extra field
_ENCRYPTED = 1  # flag of a zip member
_LOCAL_HEADER = struct.Struct("<4s2xHH16xHH")  # signature, flags, method, lengths of name and extra field

log = logging.getLogger(__name__)


class Member(NamedTuple):
    """A file or link in an archive.

    Attributes:
        name: stored name.
        header: byte offset of the member's header; in a tar, of the first of its extended headers.
        offset: for a regular file in a tar, byte offset of the content; otherwise `header`.
        size: bytes of the content in the archive; for an ambiguous member, `header` of the other member with its name.
        crc: CRC-32 of the content, in a zip.
        flags: sum of `DEFLATED`, `LINK`, `SPARSE`, `AMBIGUOUS` and `UNSUPPORTED`.
        hard_link: name of the target of a hard link.
    """

    name: str
    header: int
    offset: int
    size: int
    crc: int = 0
    flags: int = 0
    hard_link: str | None = None


def iter_members(path: Path) -> Iterator[Member]:
    """Iterate over the files and links in an archive, in order.

    Args:
        path: the archive, with the suffix `.zip` or a tar.

    Raises:
        tarfile.TarError: if a tar is broken.
        zipfile.BadZipFile: if a zip is broken. Broken archives can also raise other exceptions of the standard library, such
            as ValueError.
    """
    return _zip_members(path) if path.suffix.lower() == ".zip" else _tar_members(path)


def read_member_name(path: Path, header: int) -> str:
    """Return the name of a member.

    Args:
        path: the archive.
        header: byte offset of the member's header.
    """
    with path.open("rb") as file:
        if path.suffix.lower() == ".zip":
            return _decode_zip_name(*_read_local_header(file, header))
        return _read_tar_member(file, header).name


def read_raw_zip_name(path: Path, header: int) -> bytes:
    """Return the undecoded name of a member of a zip.

    Args:
        path: the archive.
        header: byte offset of the member's header.
    """
    with path.open("rb") as file:
        return _read_local_header(file, header)[0]


def describe_unsupported(path: Path, header: int) -> str:
    """Return why a member of a zip is unsupported, for example `encrypted` or `compressed by bzip2`.

    Args:
        path: the archive.
        header: byte offset of the member's header.
    """
    with path.open("rb") as file:
        _, flags, method, *_ = _LOCAL_HEADER.unpack(_read_fixed_header(file, header))
    if flags & _ENCRYPTED:
        return "encrypted"
    return f"compressed by {cast(Any, zipfile).compressor_names.get(method, f'method {method}')}"


def read_tar_link(path: Path, header: int) -> tuple[str, bool]:
    """Return the target of a link in a tar, and whether it is a hard link.

    The target of a hard link is relative to the root of the archive, that of a symbolic link to the folder of the link.

    Args:
        path: the archive.
        header: byte offset of the link's header.
    """
    with path.open("rb") as file:
        member = _read_tar_member(file, header)
        return member.linkname, member.islnk()


def read_sparse_content(path: Path, header: int, max_bytes: int) -> bytes:
    """Return the content of a sparse member of a tar, with zeros in its holes.

    Args:
        path: the archive.
        header: byte offset of the member's header.
        max_bytes: largest allowed size of the content.

    Raises:
        ValueError: if the content is larger than `max_bytes`, or the header is not that of a file.
    """
    with path.open("rb") as file:
        file.seek(header)
        with tarfile.open(fileobj=file, mode="r:") as archive:
            member = archive.next()
            content = archive.extractfile(member) if member is not None and member.isreg() else None
            if member is None or content is None:
                raise ValueError("expected a file at this position")
            if member.size > max_bytes:
                raise ValueError(f"it is larger than {max_bytes:,} bytes")
            return content.read()


def _tar_members(path: Path) -> Iterator[Member]:
    size, end = path.stat().st_size, 0
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            cast(Any, archive).members = []  # otherwise tarfile stores all of them, about a kilobyte each
            is_sparse = member.issparse()
            stored = 0
            if member.isreg():
                stored = sum(length for _, length in cast(Any, member).sparse) if is_sparse else member.size
            end = member.offset_data + stored
            if end > size:
                raise tarfile.ReadError(f"it ends within the member {member.name!r}")
            if is_sparse:
                yield Member(member.name, member.offset, member.offset, stored, flags=SPARSE)
            elif member.isreg():
                yield Member(member.name, member.offset, member.offset_data, stored)
            elif member.issym() or member.islnk():
                hard_link = member.linkname if member.islnk() else None
                yield Member(member.name, member.offset, member.offset, 0, flags=LINK, hard_link=hard_link)
    if size - end < 2 * tarfile.BLOCKSIZE:
        log.warning(
            "image archive %s: the two empty blocks at the end of a tar are missing; the file may be truncated", path
        )


def _read_tar_member(file: BinaryIO, header: int) -> tarfile.TarInfo:
    file.seek(header)
    with tarfile.open(fileobj=file, mode="r:") as archive:
        member = archive.next()
        if member is None:
            raise ValueError("expected a member at this position")
        return member


def _zip_members(path: Path) -> Iterator[Member]:
    seen: dict[str, tuple[bytes, int]] = {}  # raw name and header, of the names that are not ASCII
    ambiguous: set[str] = set()
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.is_dir():
                continue
            raw = member.orig_filename.encode("utf-8" if member.flag_bits & _UTF8_NAME else "cp437")
            name, header = _decode_zip_name(raw, member.flag_bits, member.extra), member.header_offset
            if not name.isascii():
                first, first_header = seen.setdefault(name, (raw, header))
                if raw != first:
                    ambiguous.add(name)
                    yield Member(name, header, header, first_header, flags=AMBIGUOUS)
                if name in ambiguous:
                    continue
            flags = DEFLATED * (member.compress_type == zipfile.ZIP_DEFLATED)
            if member.flag_bits & _ENCRYPTED or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                flags = UNSUPPORTED
            elif stat.S_ISLNK(member.external_attr >> 16) and member.create_system in (3, 19):  # Unix, macOS
                flags += LINK
            yield Member(name, header, header, member.compress_size, member.CRC, flags)


def _read_local_header(file: BinaryIO, header: int) -> tuple[bytes, int, bytes]:
    """Return the undecoded name, the flags and the extra field."""
    _, flags, _, name, extra = _LOCAL_HEADER.unpack(_read_fixed_header(file, header))
    return file.read(name), flags, file.read(extra)


def _read_fixed_header(file: BinaryIO, header: int) -> bytes:
    file.seek(header)
    begins = file.read(_LOCAL_HEADER.size)
    if not begins.startswith(b"PK\3\4"):
        raise ValueError("expected a member at this position")
    return begins


def _decode_zip_name(raw: bytes, flags: int, extra: bytes) -> str:
    """Decode a name: by Info-ZIP's extra field, else as UTF-8 if it is valid, else as code page 437."""
    raw = raw.split(b"\0")[0]
    if not flags & _UTF8_NAME and (name := _read_unicode_path(extra, raw)):
        return name
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("cp437")


def _read_unicode_path(extra: bytes, raw: bytes) -> str | None:
    """Return the name in Info-ZIP's extra field (version 1, with the CRC-32 of `raw`); None if absent or outdated."""
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        if kind == _UNICODE_PATH and size > 5 and extra[4] == 1 and extra[5:9] == struct.pack("<I", zlib.crc32(raw)):
            try:
                return extra[9 : 4 + size].decode("utf-8")
            except UnicodeDecodeError:
                return None
        extra = extra[4 + size :]
    return None

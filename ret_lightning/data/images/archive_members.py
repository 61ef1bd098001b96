"""The members of tar and zip archives: their names, where their content is, and what only their headers state."""

from __future__ import annotations

import logging
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

# How a member is read. LINK and SPARSE of a tar, and AMBIGUOUS, need the member's header; see `Member.offset`.
# UNSUPPORTED ones of a zip cannot be read in place: they are encrypted, or compressed by another method than deflate.
DEFLATED, LINK, SPARSE, AMBIGUOUS, UNSUPPORTED = 1, 2, 4, 8, 16

_UTF8_NAME = 0x800  # flag of a zip's member
_UNICODE_PATH = 0x7075  # id of Info-ZIP's extra field
_ENCRYPTED = 1  # flag of a zip's member
_LOCAL_HEADER = struct.Struct("<4s2xHH16xHH")  # signature, flags, method, lengths of name and extra field

log = logging.getLogger(__name__)


class Member(NamedTuple):
    """A file or link in an archive.

    Attributes:
        name: as it is stored.
        header: the byte at which the member's header begins; of a tar including its extended headers.
        offset: of a tar's regular file, the byte at which the content begins; else `header`.
        size: bytes that the content takes in the archive; of an ambiguous member the header of the other one.
        crc: of a zip, the content's CRC-32.
        flags: `DEFLATED`, `LINK`, `SPARSE`, `AMBIGUOUS`, `UNSUPPORTED`, or several of them added.
        hard_link: the name of the member that a hard link is for.
    """

    name: str
    header: int
    offset: int
    size: int
    crc: int = 0
    flags: int = 0
    hard_link: str | None = None


def archive_members(path: Path) -> Iterator[Member]:
    """The files and links in an archive, in order.

    Raises:
        tarfile.TarError, zipfile.BadZipFile, ValueError and what else the readers raise: if the archive is broken.
    """
    return _zip_members(path) if path.suffix.lower() == ".zip" else _tar_members(path)


def stored_name(path: Path, header: int) -> str:
    """The name of the member whose header begins at a byte."""
    with path.open("rb") as file:
        if path.suffix.lower() == ".zip":
            return _zip_name(*_local_header(file, header))
        return _tar_member(file, header).name


def raw_zip_name(path: Path, header: int) -> bytes:
    """The name of a zip's member as it is stored, undecoded."""
    with path.open("rb") as file:
        return _local_header(file, header)[0]


def unsupported_reason(path: Path, header: int) -> str:
    """Why a member with the flag `UNSUPPORTED` cannot be read in place: `encrypted` or `compressed by bzip2`."""
    with path.open("rb") as file:
        _, flags, method, *_ = _LOCAL_HEADER.unpack(_fixed_local_header(file, header))
    if flags & _ENCRYPTED:
        return "encrypted"
    return f"compressed by {zipfile.compressor_names.get(method, f'method {method}')}"


def tar_link(path: Path, header: int) -> tuple[str, bool]:
    """What a tar's link leads to, and whether it is a hard link, whose target counts from the root of the archive."""
    with path.open("rb") as file:
        member = _tar_member(file, header)
        return member.linkname, member.islnk()


def sparse_content(path: Path, header: int, most: int) -> bytes:
    """The content of a tar's sparse member, holes filled with zeros.

    Raises:
        ValueError: if it is larger than `most` bytes.
    """
    with path.open("rb") as file:
        file.seek(header)
        with tarfile.open(fileobj=file, mode="r:") as archive:
            member = archive.next()
            content = archive.extractfile(member) if member is not None and member.isreg() else None
            if content is None:
                raise ValueError("there is no file where one is expected")
            if member.size > most:
                raise ValueError(f"it is larger than {most:,} bytes")
            return content.read()


def _tar_members(path: Path) -> Iterator[Member]:
    size, end = path.stat().st_size, 0
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            archive.members = []  # tarfile would keep them all, a kilobyte each
            is_sparse = member.issparse()
            stored = 0
            if member.isreg():
                stored = sum(length for _, length in member.sparse) if is_sparse else member.size
            end = member.offset_data + stored
            if end > size:
                raise tarfile.ReadError(f"it ends within {member.name!r}")
            if is_sparse:
                yield Member(member.name, member.offset, member.offset, stored, flags=SPARSE)
            elif member.isreg():
                yield Member(member.name, member.offset, member.offset_data, stored)
            elif member.issym() or member.islnk():
                hard_link = member.linkname if member.islnk() else None
                yield Member(member.name, member.offset, member.offset, 0, flags=LINK, hard_link=hard_link)
    if size - end < 2 * tarfile.BLOCKSIZE:
        log.warning("image archive %s: a tar ends with two empty blocks and this one does not; was it cut off?", path)


def _tar_member(file: BinaryIO, header: int) -> tarfile.TarInfo:
    file.seek(header)
    with tarfile.open(fileobj=file, mode="r:") as archive:
        member = archive.next()
        if member is None:
            raise ValueError("there is no member where one is expected")
        return member


def _zip_members(path: Path) -> Iterator[Member]:
    seen: dict[str, tuple[bytes, int]] = {}  # raw name and header, of the names that are not ASCII
    ambiguous: set[str] = set()
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.is_dir():
                continue
            raw = member.orig_filename.encode("utf-8" if member.flag_bits & _UTF8_NAME else "cp437")
            name, header = _zip_name(raw, member.flag_bits, member.extra), member.header_offset
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


def _local_header(file: BinaryIO, header: int) -> tuple[bytes, int, bytes]:
    """Raw name, flags and extra field."""
    _, flags, _, name, extra = _LOCAL_HEADER.unpack(_fixed_local_header(file, header))
    return file.read(name), flags, file.read(extra)


def _fixed_local_header(file: BinaryIO, header: int) -> bytes:
    file.seek(header)
    begins = file.read(_LOCAL_HEADER.size)
    if not begins.startswith(b"PK\3\4"):
        raise ValueError("there is no member where one is expected")
    return begins


def _zip_name(raw: bytes, flags: int, extra: bytes) -> str:
    """A name in Unicode: as a flag or Info-ZIP's extra field state it, else UTF-8 if it is that, else code page 437."""
    raw = raw.split(b"\0")[0]
    if not flags & _UTF8_NAME and (name := _unicode_path(extra, raw)):
        return name
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("cp437")


def _unicode_path(extra: bytes, raw: bytes) -> str | None:
    """The name in the extra field, if that was written for this raw name: version 1, its CRC-32, UTF-8."""
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        if kind == _UNICODE_PATH and size > 5 and extra[4] == 1 and extra[5:9] == struct.pack("<I", zlib.crc32(raw)):
            try:
                return extra[9 : 4 + size].decode("utf-8")
            except UnicodeDecodeError:
                return None
        extra = extra[4 + size :]
    return None

"""Images in tar and zip archives, read in place."""

from __future__ import annotations

import os
import posixpath
import struct
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np

from ret_lightning.data.images.archive_index import (
    FLAGS,
    MAX_ARCHIVES,
    MAX_MEMBER_BYTES,
    build_index_files,
    hash_key,
    hash_name,
    normalize_image_path,
    normalize_member_name,
)
from ret_lightning.data.images.archive_members import (
    AMBIGUOUS,
    DEFLATED,
    LINK,
    SPARSE,
    UNSUPPORTED,
    describe_unsupported,
    read_member_name,
    read_raw_zip_name,
    read_sparse_content,
    read_tar_link,
)
from ret_lightning.errors import DataError
from ret_lightning.inputs.near_names import (
    MAX_MATCHES,
    MAX_PATH_LENGTH,
    NearMatches,
    iter_tails,
    normalize_name,
    run_search,
)

ARCHIVES = (".tar", ".zip")
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".7z", ".rar")
MAX_OPEN_ARCHIVES = 64  # per process; others are closed and reopened
MAX_INFLATED_BYTES = 1 << 30  # of one image: deflated members can grow a thousandfold, and sparse ones without limit
MAX_LINKS = 40  # followed one after the other, as on Linux

# Exceptions of reading a member of a changed or damaged archive.
_BROKEN_MEMBER = (OSError, struct.error, zlib.error, ValueError, tarfile.TarError)
_SIDES: tuple[Literal["left", "right"], ...] = ("left", "right")


class _Indexed(NamedTuple):
    """A member in the index; the upper 32 bits of `size` are the checksum of a zip member."""

    archive: Path
    offset: int
    size: int
    flags: int


class ImageArchives:
    """Images in tar and zip archives, read in place.

    Image paths are the names of the members, with or without a leading `./`. Names in a zip without the UTF-8 flag are decoded
    as UTF-8 if they are valid UTF-8. Links are resolved as if all archives were unpacked into one folder; links that leave this
    folder are rejected. An instance can be passed to forked and spawned processes; each process opens the archives itself.

    Args:
        archives: archive files with the suffix `.tar` or `.zip`. If several archives contain a name, the first one is used.

    Raises:
        DataError: if an archive is missing, broken or cannot be read in place.
    """

    def __init__(self, archives: Sequence[str | Path]) -> None:
        self.archives = [Path(archive) for archive in archives]
        for archive in self.archives:
            if archive.name.lower().endswith(COMPRESSED):
                raise DataError(
                    f"image archive {archive}: compressed archives cannot be read in place; decompress it to a .tar, or pack "
                    "its images into a .zip",
                    "broken_archive",
                    code="archive-compressed",
                    path=str(archive),
                )
            if archive.suffix.lower() not in ARCHIVES:
                raise DataError(
                    f"image archive {archive}: expected a file name that ends in {' or '.join(ARCHIVES)}",
                    "broken_archive",
                    code="archive-suffix-unknown",
                    path=str(archive),
                    allowed=ARCHIVES,
                )
        self._index_files = build_index_files(self.archives)
        self._open()

    def __getstate__(self) -> dict[str, Any]:
        return {"archives": self.archives, "_index_files": self._index_files}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        """Return the number of images, including links to images."""
        return self._index.shape[1]

    def find(self, path: str) -> None:
        """Check that an image exists, without reading it.

        Args:
            path: path of the image in the archives.

        Raises:
            DataError: of the kind `path_outside`, `missing_image` or `unreadable_image`.
        """
        self._find_member(path)

    def read(self, path: str) -> bytes:
        """Return the bytes of an image file.

        Args:
            path: path of the image in the archives.

        Raises:
            DataError: of the kind `path_outside`, `missing_image` or `unreadable_image`.
        """
        name, member = self._find_member(path)
        try:
            if member.flags & SPARSE:
                return read_sparse_content(member.archive, member.offset, MAX_INFLATED_BYTES)
            return self._read_content(member)
        except _BROKEN_MEMBER as error:
            raise _broken_error(name, member, error) from error

    def near(self, path: str) -> NearMatches:
        """Find images with a similar path.

        Args:
            path: path of an image that is in no archive.
        """
        if len(path) > MAX_PATH_LENGTH:
            return NearMatches()
        try:
            return run_search(lambda: self._find_near_names(normalize_name(path)))
        except _BROKEN_MEMBER:
            return NearMatches()

    def _find_near_names(self, key: str) -> NearMatches:
        for hashed in (key, f"/{key}", *iter_tails(key)):
            low, high = (int(np.searchsorted(self._near[0], np.uint64(hash_key(hashed)), side)) for side in _SIDES)
            found = self._near[1, low : min(high, low + MAX_MATCHES)].tolist()
            names = (read_member_name(self.archives[where % MAX_ARCHIVES], where // MAX_ARCHIVES) for where in found)
            if near := tuple(dict.fromkeys(map(normalize_member_name, names))):
                return NearMatches(near)
        return NearMatches()

    def _find_member(self, path: str) -> tuple[str, _Indexed]:
        """Return the name and the index entry of a member, with links resolved."""
        requested = name = normalize_image_path(
            path, self.archives[0] if len(self.archives) == 1 else "the archives", self.near
        )
        link, target = "", ""
        for _ in range(MAX_LINKS):
            member = self._look_up(name)
            if member is not None and not member.flags & LINK:
                if member.flags & AMBIGUOUS:
                    raise _ambiguous_error(name, member)
                if member.flags & UNSUPPORTED:
                    raise _unsupported_error(name, member)
                return name, member
            rest = ""
            if member is None and len(name) <= MAX_PATH_LENGTH:  # a folder of the path may be a link
                for at in (i for i, letter in enumerate(name) if letter == "/"):
                    if (folder := self._look_up(name[:at])) is not None and folder.flags & LINK:
                        member, name, rest = folder, name[:at], name[at:]
                        break
            if member is None:
                raise self._missing_error(requested, name, link, target)
            link = name
            target, name = self._follow(name, member)
            name = normalize_member_name(name + rest)
        raise DataError(
            f"image {requested!r} cannot be read from {self._describe()}: its links are circular, or more than {MAX_LINKS}; "
            f"the last one is {link!r} to {target!r}",
            "unreadable_image",
            code="archive-link-circular",
            image=requested,
            link=link,
            target=target,
        )

    def _look_up(self, name: str) -> _Indexed | None:
        """Return the index entry of a member; None if there is no member of that name."""
        high, low = hash_name(name)
        hashes = self._index[0]
        at = int(np.searchsorted(hashes, np.uint64(high)))
        while at < len(hashes) and hashes[at] == high:
            if self._index[1, at] == low:
                offset, size, where = (int(value) for value in self._index[2:, at])
                return _Indexed(self.archives[where // FLAGS], offset, size, where % FLAGS)
            at += 1
        return None

    def _follow(self, link: str, member: _Indexed) -> tuple[str, str]:
        """Return the target of a link as it is stored, and the name of the member that it refers to."""
        try:
            if member.archive.suffix.lower() == ".zip":
                target, is_hard = os.fsdecode(self._read_content(member)), False
            else:
                target, is_hard = read_tar_link(member.archive, member.offset)
        except _BROKEN_MEMBER as error:
            raise _broken_error(link, member, error) from error
        name = normalize_member_name(target if is_hard else posixpath.join(posixpath.dirname(link), target))
        if name == ".." or name.startswith("../") or (target.startswith("/") and not is_hard):
            raise DataError(
                f"image {link!r} in {member.archive} is a link to {target!r}, which is outside the archive; expected a target "
                "within it",
                "path_outside",
                code="archive-link-outside",
                link=link,
                target=target,
                path=str(member.archive),
            )
        return target, name

    def _missing_error(self, requested: str, name: str, link: str, target: str) -> DataError:
        near = self.near(name)
        hint = near.hint(name)
        if link:
            return DataError(
                f"image {requested!r} is not in {self._describe()}: {link!r} is a link to {target!r}, and there is no file "
                f"{name!r}{hint}",
                "missing_image",
                code="archive-link-dangling",
                image=requested,
                link=link,
                target=target,
                near=near.names,
            )
        return DataError(
            f"image {requested!r} is not in {self._describe()}{hint}",
            "missing_image",
            code="archive-image-missing",
            image=requested,
            near=near.names,
        )

    def _describe(self) -> str:
        others = len(self.archives) - 1
        more = f" or {others} other archive{'s' * (others > 1)}" if others else ""
        return f"{self.archives[0]}{more}"

    def _open(self) -> None:
        self._index, self._near = (np.load(file, mmap_mode="r").view(np.ndarray) for file in self._index_files)
        self._files: dict[Path, BinaryIO] = {}

    def _read_content(self, member: _Indexed) -> bytes:
        archive, offset, size, flags = member
        if archive.suffix.lower() == ".tar":
            return self._read_bytes(archive, offset, size)
        size, crc = size & MAX_MEMBER_BYTES, size >> 32
        header = self._read_bytes(archive, offset, 30)
        if not header.startswith(b"PK\3\4"):
            raise ValueError("expected a member at this position")
        # Lengths, which may differ from those in the central directory.
        name_and_extra = sum(struct.unpack("<HH", header[26:]))
        content = self._read_bytes(archive, offset + 30 + name_and_extra, size)
        if flags & DEFLATED:
            inflating = zlib.decompressobj(-zlib.MAX_WBITS)
            content = inflating.decompress(content, MAX_INFLATED_BYTES)
            if not inflating.eof:
                raise ValueError(f"deflated data is truncated, or larger than {MAX_INFLATED_BYTES:,} bytes")
        if zlib.crc32(content) != crc:
            raise ValueError("checksum does not match")
        return content

    def _read_bytes(self, archive: Path, offset: int, size: int) -> bytes:
        file = self._files.get(archive)
        if file is None:
            for oldest in list(self._files)[: -MAX_OPEN_ARCHIVES + 1]:
                self._files.pop(oldest, None)  # closed when no thread reads from it any more
            file = self._files[archive] = archive.open("rb")
        # pread, because forked processes and threads share the position of a file.
        content = os.pread(file.fileno(), size, offset)
        if len(content) < size:
            raise ValueError(f"archive ends {size - len(content)} bytes early")
        return content


def _broken_error(name: str, member: _Indexed, error: Exception) -> DataError:
    reason = " ".join(str(error).split())
    return DataError(
        f"image {name!r} cannot be read from {member.archive}: {reason}; check whether the archive is complete",
        "unreadable_image",
        code="archive-member-broken",
        image=name,
        path=str(member.archive),
        reason=reason,
    )


def _unsupported_error(name: str, member: _Indexed) -> DataError:
    try:
        found = describe_unsupported(member.archive, member.offset)
    except _BROKEN_MEMBER as error:
        return _broken_error(name, member, error)
    return DataError(
        f"image {name!r} in {member.archive} is {found}; expected a stored or deflated member without a password: unpack the "
        "archive and pack it with zip -0 -r, or as a .tar",
        "unreadable_image",
        code="archive-member-unsupported",
        image=name,
        path=str(member.archive),
        found=found,
    )


def _ambiguous_error(name: str, member: _Indexed) -> DataError:
    try:
        found = tuple(read_raw_zip_name(member.archive, header) for header in (member.size, member.offset))
    except _BROKEN_MEMBER as error:
        return _broken_error(name, member, error)
    return DataError(
        f"image {name!r} is ambiguous in {member.archive}: the names {found[0]!r} and {found[1]!r} are decoded to it; rename "
        "one of them and pack the archive again",
        "unreadable_image",
        code="archive-name-ambiguous",
        image=name,
        path=str(member.archive),
        found=found,
    )

"""Images in tar and zip archives, which are read in place."""

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
    LARGEST,
    POSITIONS,
    index_files,
    key_hash,
    member_name,
    name_hash,
    path_inside,
)
from ret_lightning.data.images.archive_members import (
    AMBIGUOUS,
    DEFLATED,
    LINK,
    SPARSE,
    UNSUPPORTED,
    raw_zip_name,
    sparse_content,
    stored_name,
    tar_link,
    unsupported_reason,
)
from ret_lightning.errors import DataError
from ret_lightning.inputs.near_names import LONGEST_PATH, MOST_NAMED, Near, name_key, tails, timed_search

ARCHIVES = (".tar", ".zip")
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".7z", ".rar")
OPEN_ARCHIVES = 64  # a process; more are closed and opened again
MOST_INFLATED = 1 << 30  # bytes of one image: a deflated member may grow a thousandfold, and holes are without limit
MOST_LINKS = 40  # that are followed one after the other, as on Linux

# What reading a member of a changed or damaged archive raises.
_BROKEN_MEMBER = (OSError, struct.error, zlib.error, ValueError, tarfile.TarError)
_SIDES: tuple[Literal["left", "right"], ...] = ("left", "right")


class _Indexed(NamedTuple):
    """A member as the index describes it; `size` holds the checksum of a zip's member, too."""

    archive: Path
    offset: int
    size: int
    flags: int


class ImageArchives:
    """The images in tar archives and zip archives, which are read in place.

    Names count as they are stored in the archives, with or without a leading `./`; those of a zip that are not marked as
    UTF-8 are read as UTF-8 if they are that. Links lead to the members that they would lead to if all archives were unpacked
    into one folder; a link out of that folder is refused. An object may be handed to other processes, forked or spawned;
    each opens the archives for itself when it reads the first image.

    Args:
        archives: files, by `.tar` or `.zip` at the end of their names. Where several hold a name, the first of them counts.

    Raises:
        DataError: an archive is missing, broken, or of a form that cannot be read in place.
    """

    def __init__(self, archives: Sequence[str | Path]) -> None:
        self.archives = [Path(archive) for archive in archives]
        for archive in self.archives:
            if archive.name.lower().endswith(COMPRESSED):
                raise DataError(
                    f"image archive {archive}: a compressed archive cannot be read in place; unpack it to a .tar, or make a "
                    ".zip of its images",
                    "broken_archive",
                    code="archive-compressed",
                    path=str(archive),
                )
            if archive.suffix.lower() not in ARCHIVES:
                raise DataError(
                    f"image archive {archive}: its name must end in {' or '.join(ARCHIVES)}",
                    "broken_archive",
                    code="archive-suffix-unknown",
                    path=str(archive),
                    allowed=ARCHIVES,
                )
        self._index_files = index_files(self.archives)
        self._open()

    def __getstate__(self) -> dict[str, Any]:
        return {"archives": self.archives, "_index_files": self._index_files}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        """How many images there are, links to images included."""
        return self._index.shape[1]

    def find(self, path: str) -> None:
        """As in `ImageSource`."""
        self._member(path)

    def read(self, path: str) -> bytes:
        """As in `ImageSource`."""
        name, member = self._member(path)
        try:
            if member.flags & SPARSE:
                return sparse_content(member.archive, member.offset, MOST_INFLATED)
            return self._content(member)
        except _BROKEN_MEMBER as error:
            raise _broken(name, member, error) from error

    def near(self, path: str) -> Near:
        """The images whose paths are spelled nearly like one that is in no archive."""
        if len(path) > LONGEST_PATH:
            return Near()
        try:
            return timed_search(lambda: self._near_names(name_key(path)))
        except _BROKEN_MEMBER:
            return Near()

    def _near_names(self, key: str) -> Near:
        for hashed in (key, f"/{key}", *tails(key)):
            low, high = (int(np.searchsorted(self._near[0], np.uint64(key_hash(hashed)), side)) for side in _SIDES)
            found = self._near[1, low : min(high, low + MOST_NAMED)].tolist()
            names = (stored_name(self.archives[where % POSITIONS], where // POSITIONS) for where in found)
            if near := tuple(dict.fromkeys(map(member_name, names))):
                return Near(near)
        return Near()

    def _member(self, path: str) -> tuple[str, _Indexed]:
        """A member and its name, links followed."""
        asked = name = path_inside(path, self.archives[0] if len(self.archives) == 1 else "the archives", self.near)
        link, target = "", ""
        for _ in range(MOST_LINKS):
            member = self._indexed(name)
            if member is not None and not member.flags & LINK:
                if member.flags & AMBIGUOUS:
                    raise _ambiguous(name, member)
                if member.flags & UNSUPPORTED:
                    raise _unsupported(name, member)
                return name, member
            rest = ""
            if member is None and len(name) <= LONGEST_PATH:  # a folder on the path may be a link
                for at in (i for i, letter in enumerate(name) if letter == "/"):
                    if (folder := self._indexed(name[:at])) is not None and folder.flags & LINK:
                        member, name, rest = folder, name[:at], name[at:]
                        break
            if member is None:
                raise self._missing(asked, name, link, target)
            link = name
            target, name = self._followed(name, member)
            name = member_name(name + rest)
        raise DataError(
            f"image {asked!r} cannot be read from {self._named()}: its links lead in a circle, or are more than "
            f"{MOST_LINKS}; the last is {link!r} to {target!r}",
            "unreadable_image",
            code="archive-link-circular",
            image=asked,
            link=link,
            target=target,
        )

    def _indexed(self, name: str) -> _Indexed | None:
        """What the index holds of a member."""
        high, low = name_hash(name)
        hashes = self._index[0]
        at = int(np.searchsorted(hashes, np.uint64(high)))
        while at < len(hashes) and hashes[at] == high:
            if self._index[1, at] == low:
                offset, size, where = (int(value) for value in self._index[2:, at])
                return _Indexed(self.archives[where // FLAGS], offset, size, where % FLAGS)
            at += 1
        return None

    def _followed(self, link: str, member: _Indexed) -> tuple[str, str]:
        """What a link states, and the name of the member that this is."""
        try:
            if member.archive.suffix.lower() == ".zip":
                target, is_hard = os.fsdecode(self._content(member)), False
            else:
                target, is_hard = tar_link(member.archive, member.offset)
        except _BROKEN_MEMBER as error:
            raise _broken(link, member, error) from error
        name = member_name(target if is_hard else posixpath.join(posixpath.dirname(link), target))
        if name == ".." or name.startswith("../") or (target.startswith("/") and not is_hard):
            raise DataError(
                f"image {link!r} in {member.archive} is a link to {target!r}, which leads out of the archive; links are "
                "followed within it only",
                "path_outside",
                code="archive-link-outside",
                link=link,
                target=target,
                path=str(member.archive),
            )
        return target, name

    def _missing(self, asked: str, name: str, link: str, target: str) -> DataError:
        near = self.near(name)
        hint = near.hint(name)
        if link:
            return DataError(
                f"image {asked!r} is not in {self._named()}: {link!r} is a link to {target!r}, and {name!r} is not a file "
                f"there{hint}",
                "missing_image",
                code="archive-link-dangling",
                image=asked,
                link=link,
                target=target,
                near=near.names,
            )
        return DataError(
            f"image {asked!r} is not in {self._named()}{hint}",
            "missing_image",
            code="archive-image-missing",
            image=asked,
            near=near.names,
        )

    def _named(self) -> str:
        others = len(self.archives) - 1
        more = f" or {others} other archive{'s' * (others > 1)}" if others else ""
        return f"{self.archives[0]}{more}"

    def _open(self) -> None:
        self._index, self._near = (np.load(file, mmap_mode="r").view(np.ndarray) for file in self._index_files)
        self._files: dict[Path, BinaryIO] = {}

    def _content(self, member: _Indexed) -> bytes:
        archive, offset, size, flags = member
        if archive.suffix.lower() == ".tar":
            return self._bytes(archive, offset, size)
        size, crc = size & LARGEST, size >> 32
        header = self._bytes(archive, offset, 30)
        if not header.startswith(b"PK\3\4"):
            raise ValueError("there is no member where one is expected")
        name_and_extra = sum(struct.unpack("<HH", header[26:]))  # their lengths; the central directory's may differ
        content = self._bytes(archive, offset + 30 + name_and_extra, size)
        if flags & DEFLATED:
            inflating = zlib.decompressobj(-zlib.MAX_WBITS)
            content = inflating.decompress(content, MOST_INFLATED)
            if not inflating.eof:
                raise ValueError(f"it does not end, or is larger than {MOST_INFLATED:,} bytes")
        if zlib.crc32(content) != crc:
            raise ValueError("its checksum is wrong")
        return content

    def _bytes(self, archive: Path, offset: int, size: int) -> bytes:
        file = self._files.get(archive)
        if file is None:
            for oldest in list(self._files)[: -OPEN_ARCHIVES + 1]:
                self._files.pop(oldest, None)  # closed once no thread reads from it any more
            file = self._files[archive] = archive.open("rb")
        # pread, not seek and read: forked processes and threads share a file's position.
        content = os.pread(file.fileno(), size, offset)
        if len(content) < size:
            raise ValueError(f"the file ends {size - len(content)} bytes early")
        return content


def _broken(name: str, member: _Indexed, error: Exception) -> DataError:
    reason = " ".join(str(error).split())
    return DataError(
        f"image {name!r} cannot be read from {member.archive}: {reason}; is the archive whole?",
        "unreadable_image",
        code="archive-member-broken",
        image=name,
        path=str(member.archive),
        reason=reason,
    )


def _unsupported(name: str, member: _Indexed) -> DataError:
    try:
        found = unsupported_reason(member.archive, member.offset)
    except _BROKEN_MEMBER as error:
        return _broken(name, member, error)
    return DataError(
        f"image {name!r} in {member.archive} is {found}; only stored and deflated members without a password are read in "
        "place: unpack the archive, and pack it again by zip -0 -r, or as a .tar",
        "unreadable_image",
        code="archive-member-unsupported",
        image=name,
        path=str(member.archive),
        found=found,
    )


def _ambiguous(name: str, member: _Indexed) -> DataError:
    try:
        found = tuple(raw_zip_name(member.archive, header) for header in (member.size, member.offset))
    except _BROKEN_MEMBER as error:
        return _broken(name, member, error)
    return DataError(
        f"image {name!r} is ambiguous in {member.archive}: two members have that name once it is decoded, {found[0]!r} and "
        f"{found[1]!r}; rename one of them and make the archive again",
        "unreadable_image",
        code="archive-name-ambiguous",
        image=name,
        path=str(member.archive),
        found=found,
    )

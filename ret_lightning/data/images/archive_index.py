"""An index of the members of tar and zip archives: made once, kept in cache files, mapped into memory.

The index is a (5, n) uint64 array, sorted by its first row: 40 bytes per member, shared by the processes of a machine.

    0, 1   the two halves of the 128-bit hash of the member's name: of 2^64 names two would be expected to share one
    2      `Member.offset`
    3      `Member.size`, and in the upper 32 bits `Member.crc`; of an ambiguous member only the former
    4      `FLAGS` times the archive's position in the list, plus `Member.flags`

A second array, (2, m) and sorted by its first row, finds members by names that are nearly theirs; only errors need it.

    0      hash of `name_key` of the member's name; again of `/` and that key without its first folder, if there is one
    1      `POSITIONS` times `Member.header`, plus the archive's position
"""

from __future__ import annotations

import logging
import os
import posixpath
import struct
import tarfile
import zipfile
import zlib
from array import array
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
from filelock import FileLock

from ret_lightning.data.images.archive_members import AMBIGUOUS, archive_members
from ret_lightning.errors import DataError
from ret_lightning.inputs.near_names import Near, name_key, near_file
from ret_lightning.runtime.atomic_files import whole_file
from ret_lightning.runtime.cache_dir import default_cache_dir
from ret_lightning.runtime.git_lfs import refuse_lfs_pointer
from ret_lightning.runtime.progress import progress_bar

VERSION = 3  # to be raised by every change of what an index holds
ROWS = 5
FLAGS = 32
POSITIONS = 1 << 20  # most archives; leaves 16 TB for the offset in each
LARGEST = (1 << 32) - 1  # bytes of a member; what is larger is no image and is left out

# What tarfile and zipfile raise on broken archives.
_BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    EOFError,
    ValueError,
    RuntimeError,
    OverflowError,
    zlib.error,
    struct.error,
)

log = logging.getLogger(__name__)


def member_name(path: str) -> str:
    """A path as archives and rows may write it (`./a//b.jpg`, `a/x/../b.jpg`) in one form, `a/b.jpg`."""
    return posixpath.normpath(path).lstrip("/")


def path_inside(path: str, root: str | Path, near: Callable[[str], Near]) -> str:
    """An image path of a row in the form of `member_name`.

    Args:
        path: as it is in the row.
        root: what it is relative to, for messages.
        near: finds near matches of a path.

    Raises:
        DataError: of the kinds `path_outside` and `missing_image`.
    """
    name = member_name(path)
    if os.path.isabs(path) or name == ".." or name.startswith("../"):
        found = near(path)
        raise DataError(
            f"image path {path!r} leads out of {root}; paths are relative to it and stay within{found.hint(path)}",
            "path_outside",
            code="image-path-outside",
            image=path,
            near=found.names,
        )
    if "\0" in name:
        raise DataError(
            f"image path {path!r} holds a null character, which no file name can",
            "missing_image",
            code="image-path-null-character",
            image=path,
        )
    if name == ".":
        raise DataError(f"image path {path!r} names no file", "missing_image", code="image-path-empty", image=path)
    if path.endswith(("/", "/.")):
        found = near(path)
        raise DataError(
            f"image path {path!r} names a folder, since it ends in {path[path.rindex('/') :]!r}{found.hint(path)}",
            "missing_image",
            code="image-path-of-folder",
            image=path,
            near=found.names,
        )
    return name


def name_hash(name: str) -> tuple[int, int]:
    """The two halves of a name's hash."""
    # surrogatepass: bytes of unknown encoding in a name are lone surrogates in Python.
    return struct.unpack("<QQ", blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest())


def key_hash(key: str) -> int:
    """The hash of a `name_key`."""
    return struct.unpack("<Q", blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest())[0]


def index_files(archives: Sequence[Path]) -> tuple[Path, Path]:
    """The two arrays of these archives, made where there are none, or where a size or time of modification has changed.

    Where a name occurs more than once, the last one in its archive counts, as for tar and unzip, and the first archive.

    Returns:
        Two npy files in the user's cache folder: the index, and the near names.

    Raises:
        DataError: an archive is missing, broken or of a form that cannot be read in place, or the cache cannot be written.
    """
    folder = default_cache_dir() / "image_archives"
    of_paths = _digest([VERSION, *(str(path.resolve()) for path in archives)])
    stem = f"{of_paths}-{_digest([_state(path) for path in archives])}"
    file, near_names = folder / f"{stem}.npy", folder / f"{stem}-near.npy"
    # Without the lock, so that a finished cache may be read-only. pathlib would raise where it may not be searched.
    if os.path.isfile(file) and os.path.isfile(near_names):
        return file, near_names
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{of_paths}.lock"):
            if not (file.is_file() and near_names.is_file()):
                index, near = _build(archives)
                for path, values in ((file, index), (near_names, near)):
                    with whole_file(path) as unfinished, unfinished.open("wb") as out:
                        np.save(out, values)
                for outdated in folder.glob(f"{of_paths}-*.npy"):
                    if outdated not in (file, near_names):
                        outdated.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(
            f"{folder}: the index of the image archives cannot be written there ({reason}); name another "
            "folder with the environment variable XDG_CACHE_HOME",
            code="archive-cache-not-written",
            path=str(folder),
            reason=reason,
        ) from error
    return file, near_names


def _digest(values: Sequence[object]) -> str:
    return blake2b(repr(values).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _state(path: Path) -> tuple[int, int]:
    try:
        state = os.stat(path)
    except OSError as error:
        near = near_file(path)
        raise DataError(
            f"image archive {path}: {error.strerror}{near.hint(str(path))}",
            "missing_archive",
            code="archive-missing",
            path=str(path),
            near=near.names,
        ) from error
    return state.st_size, state.st_mtime_ns


def _build(archives: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    parts: list[np.ndarray] = []
    near = array("Q")
    done, total = 0, sum(path.stat().st_size for path in archives)
    # Quiet when it is done within two seconds.
    with progress_bar(
        desc="indexing image archives", total=total, unit="B", unit_scale=True, delay=2, mininterval=1
    ) as bar:
        for position, path in enumerate(archives):
            refuse_lfs_pointer(path)
            rows = _checked_entries(path, position, near, lambda at, done=done: bar.update(done + at - bar.n))
            done += path.stat().st_size
            parts.append(rows[::-1])  # of equal names in an archive the last one comes first
    index = np.concatenate(parts).T
    index = index[:, np.lexsort((index[1], index[0]))]  # stable: equal names stay in the order of the archives
    again = (index[:2, 1:] == index[:2, :-1]).all(axis=0)
    elsewhere = np.flatnonzero(again & (index[4, 1:] // FLAGS != index[4, :-1] // FLAGS))
    if len(elsewhere):
        first, later = (archives[int(index[4, elsewhere[0] + i]) // FLAGS] for i in (0, 1))
        log.warning(
            "%d names occur in several image archives, of which the first counts; one of them is in %s and %s",
            len(elsewhere), first, later,
        )  # fmt: skip
    near_names = np.frombuffer(near, dtype=np.uint64).reshape(-1, 2).T
    near_names = near_names[:, np.argsort(near_names[0], kind="stable")]
    return np.ascontiguousarray(index[:, np.concatenate(([True], ~again))]), np.ascontiguousarray(near_names)


def _checked_entries(path: Path, position: int, near: array[int], at_byte: Callable[[int], object]) -> np.ndarray:
    """As `_entries`; what an archive that is broken or empty raises becomes a DataError."""
    try:
        rows = _entries(path, position, near, at_byte)
    except _BROKEN as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"image archive {path}: not whole, or no archive: {reason}",
            "broken_archive",
            code="archive-broken",
            path=str(path),
            reason=reason,
        ) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(
            f"image archive {path}: {reason}",
            "broken_archive",
            code="archive-not-read",
            path=str(path),
            reason=reason,
        ) from error
    if not len(rows):
        raise DataError(
            f"image archive {path}: there is no file in it", "broken_archive", code="archive-empty", path=str(path)
        )
    return rows


def _entries(path: Path, position: int, near: array[int], at_byte: Callable[[int], object]) -> np.ndarray:
    """The (n, 5) rows of an archive, in its order.

    Args:
        path: the archive.
        position: its position in the list.
        near: gets the near names.
        at_byte: called with the byte at which each member begins.
    """
    entries, hard_links = array("Q"), array("Q")
    for member in archive_members(path):
        at_byte(member.header)
        if member.size > LARGEST and not member.flags & AMBIGUOUS:
            continue
        name = member_name(member.name)
        if member.hard_link is not None:
            hard_links.extend((len(entries) // ROWS, *name_hash(member_name(member.hard_link))))
        where = FLAGS * position + member.flags
        entries.extend((*name_hash(name), member.offset, member.size | member.crc << 32, where))
        _add_near(near, name_key(name), member.header, position)
    rows = np.frombuffer(entries, dtype=np.uint64).reshape(-1, ROWS)
    _resolve_hard_links(rows, np.frombuffer(hard_links, dtype=np.uint64).reshape(-1, 3))
    return rows


def _add_near(near: array[int], key: str, header: int, position: int) -> None:
    where = POSITIONS * header + position
    if where >= 1 << 64 or position >= POSITIONS:
        return
    near.extend((key_hash(key), where))
    _, slash, rest = key.partition("/")
    if slash:
        near.extend((key_hash(f"/{rest}"), where))


def _resolve_hard_links(rows: np.ndarray, links: np.ndarray) -> None:
    """Points hard links to the member that tar links them to: the last one of that name before the link.

    A link that comes before its target stays as it is, to be followed when it is read.
    """
    order = np.argsort(rows[:, 0], kind="stable")
    hashes = rows[order, 0]
    for row, high, low in links:
        same = order[np.searchsorted(hashes, high) : np.searchsorted(hashes, high, "right")]
        before = [at for at in same if at < row and rows[at, 1] == low]
        if before:
            rows[row, 2:] = rows[before[-1], 2:]

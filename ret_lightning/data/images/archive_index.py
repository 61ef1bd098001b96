"""Index of the members of tar and zip archives, stored in cache files and mapped into memory.

The index is a (5, n) uint64 array, sorted by its first row. It has 40 bytes per member and is shared by the processes of a
machine. Rows of the index:

    0, 1   the two halves of the 128-bit hash of the member's name
    2      `Member.offset`
    3      `Member.size`, with `Member.crc` in the upper 32 bits; for an ambiguous member only `Member.size`
    4      `FLAGS` * index of the archive in the list + `Member.flags`

A second array, (2, m), sorted by its first row, finds members with similar names for error messages. Its rows:

    0      hash of `normalize_name` of the member's name, and of `/` followed by that name without its first folder
    1      `MAX_ARCHIVES` * `Member.header` + index of the archive in the list
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

from ret_lightning.data.images.archive_members import AMBIGUOUS, iter_members
from ret_lightning.errors import DataError
from ret_lightning.inputs.near_names import NearMatches, find_near_files, normalize_name
from ret_lightning.runtime.atomic_files import whole_file
from ret_lightning.runtime.cache_dir import default_cache_dir
from ret_lightning.runtime.git_lfs import refuse_lfs_pointer
from ret_lightning.runtime.progress import progress_bar

VERSION = 3  # increase it when the content of an index changes
ROWS = 5
FLAGS = 32
MAX_ARCHIVES = 1 << 20  # leaves 16 TB for the offset within an archive
MAX_MEMBER_BYTES = (1 << 32) - 1  # larger members are not images and are skipped

# Exceptions of tarfile and zipfile for broken archives.
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


def normalize_member_name(path: str) -> str:
    """Normalize an image path: `./a//b.jpg` and `a/x/../b.jpg` become `a/b.jpg`."""
    return posixpath.normpath(path).lstrip("/")


def normalize_image_path(path: str, root: str | Path, near: Callable[[str], NearMatches]) -> str:
    """Validate an image path of a row and normalize it.

    Args:
        path: path in the row.
        root: folder or archive that it is relative to, for error messages.
        near: finds images with a similar path.

    Raises:
        DataError: of the kind `path_outside` if the path is absolute or leaves the root; of the kind `missing_image` if it
            contains a null character or does not name a file.
    """
    name = normalize_member_name(path)
    if os.path.isabs(path) or name == ".." or name.startswith("../"):
        found = near(path)
        raise DataError(
            f"image path {path!r} is outside {root}; expected a path relative to it{found.hint(path)}",
            "path_outside",
            code="image-path-outside",
            image=path,
            near=found.names,
        )
    if "\0" in name:
        raise DataError(
            f"image path {path!r} contains a null character",
            "missing_image",
            code="image-path-null-character",
            image=path,
        )
    if name == ".":
        raise DataError(
            f"image path {path!r} does not name a file", "missing_image", code="image-path-empty", image=path
        )
    if path.endswith(("/", "/.")):
        found = near(path)
        raise DataError(
            f"image path {path!r} names a folder, because it ends in {path[path.rindex('/') :]!r}{found.hint(path)}",
            "missing_image",
            code="image-path-of-folder",
            image=path,
            near=found.names,
        )
    return name


def hash_name(name: str) -> tuple[int, int]:
    """Return the two halves of the 128-bit hash of a name."""
    # surrogatepass: Python represents undecodable bytes of a name as unpaired surrogates.
    return struct.unpack("<QQ", blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest())


def hash_key(key: str) -> int:
    """Return the 64-bit hash of a name that was normalized by `normalize_name`."""
    return struct.unpack("<Q", blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest())[0]


def build_index_files(archives: Sequence[Path]) -> tuple[Path, Path]:
    """Return the index files of archives, and build them if they are missing or an archive has changed.

    An archive has changed if its size or modification time has. If a name occurs several times, the first archive with the
    name is used, and within it the last member, as tar and unzip do.

    Args:
        archives: the archives.

    Returns:
        Two npy files in the user's cache folder: the index, and the array of similar names.

    Raises:
        DataError: if an archive is missing, broken or cannot be read in place, or the cache cannot be written.
    """
    folder = default_cache_dir() / "image_archives"
    of_paths = _digest([VERSION, *(str(path.resolve()) for path in archives)])
    stem = f"{of_paths}-{_digest([_state(path) for path in archives])}"
    file, near_names = folder / f"{stem}.npy", folder / f"{stem}-near.npy"
    # No lock, because a finished cache may be read-only. os.path, because pathlib raises if the folder is not accessible.
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
            f"{folder}: cannot write the index of the image archives ({reason}); set the environment variable "
            "XDG_CACHE_HOME to another folder",
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
        near = find_near_files(path)
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
    # Displayed after two seconds.
    with progress_bar(
        desc="indexing image archives", total=total, unit="B", unit_scale=True, delay=2, mininterval=1
    ) as bar:
        for position, path in enumerate(archives):
            refuse_lfs_pointer(path)
            rows = _read_checked_entries(path, position, near, lambda at, done=done: bar.update(done + at - bar.n))
            done += path.stat().st_size
            parts.append(rows[::-1])  # the last of equal names comes first
    index = np.concatenate(parts).T
    index = index[:, np.lexsort((index[1], index[0]))]  # stable: equal names keep the order of the archives
    is_repeated = (index[:2, 1:] == index[:2, :-1]).all(axis=0)
    elsewhere = np.flatnonzero(is_repeated & (index[4, 1:] // FLAGS != index[4, :-1] // FLAGS))
    if len(elsewhere):
        first, later = (archives[int(index[4, elsewhere[0] + i]) // FLAGS] for i in (0, 1))
        log.warning(
            "%d image names occur in several archives, of which the first is used; the first such name is in %s and %s",
            len(elsewhere), first, later,
        )  # fmt: skip
    near_names = np.frombuffer(near, dtype=np.uint64).reshape(-1, 2).T
    near_names = near_names[:, np.argsort(near_names[0], kind="stable")]
    return np.ascontiguousarray(index[:, np.concatenate(([True], ~is_repeated))]), np.ascontiguousarray(near_names)


def _read_checked_entries(path: Path, position: int, near: array[int], at_byte: Callable[[int], object]) -> np.ndarray:
    """Read the index rows of an archive; raise a DataError if it is broken or empty."""
    try:
        rows = _read_entries(path, position, near, at_byte)
    except _BROKEN as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"image archive {path}: truncated, or not an archive: {reason}",
            "broken_archive",
            code="archive-broken",
            path=str(path),
            reason=reason,
        ) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(
            f"image archive {path}: cannot be read ({reason}); check the disk and the permissions of the file",
            "broken_archive",
            code="archive-not-read",
            path=str(path),
            reason=reason,
        ) from error
    if not len(rows):
        raise DataError(
            f"image archive {path}: contains no files; expected images",
            "broken_archive",
            code="archive-empty",
            path=str(path),
        )
    return rows


def _read_entries(path: Path, position: int, near: array[int], at_byte: Callable[[int], object]) -> np.ndarray:
    """Read the index rows of an archive, (n, 5), in the order of its members.

    Args:
        path: the archive.
        position: index of the archive in the list.
        near: array that the similar names are appended to.
        at_byte: called with the byte offset of each member, to report progress.
    """
    entries, hard_links = array("Q"), array("Q")
    for member in iter_members(path):
        at_byte(member.header)
        if member.size > MAX_MEMBER_BYTES and not member.flags & AMBIGUOUS:
            continue
        name = normalize_member_name(member.name)
        if member.hard_link is not None:
            hard_links.extend((len(entries) // ROWS, *hash_name(normalize_member_name(member.hard_link))))
        where = FLAGS * position + member.flags
        entries.extend((*hash_name(name), member.offset, member.size | member.crc << 32, where))
        _append_near(near, normalize_name(name), member.header, position)
    rows = np.frombuffer(entries, dtype=np.uint64).reshape(-1, ROWS)
    _resolve_hard_links(rows, np.frombuffer(hard_links, dtype=np.uint64).reshape(-1, 3))
    return rows


def _append_near(near: array[int], key: str, header: int, position: int) -> None:
    where = MAX_ARCHIVES * header + position
    if where >= 1 << 64 or position >= MAX_ARCHIVES:
        return
    near.extend((hash_key(key), where))
    _, slash, rest = key.partition("/")
    if slash:
        near.extend((hash_key(f"/{rest}"), where))


def _resolve_hard_links(rows: np.ndarray, links: np.ndarray) -> None:
    """Replace the entries of hard links by those of their targets, the last members of that name before the links.

    A link that precedes its target is unchanged and is resolved when it is read.
    """
    order = np.argsort(rows[:, 0], kind="stable")
    hashes = rows[order, 0]
    for row, high, low in links:
        same = order[np.searchsorted(hashes, high) : np.searchsorted(hashes, high, "right")]
        before = [at for at in same if at < row and rows[at, 1] == low]
        if before:
            rows[row, 2:] = rows[before[-1], 2:]

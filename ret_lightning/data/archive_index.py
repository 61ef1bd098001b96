"""Where each member of a set of tar and zip archives stands: found once, kept in a cache file, mapped into memory.

The index is a (5, n) uint64 array, sorted by its first row: 40 bytes a member, which the processes of a machine share.

    0, 1   the two halves of the 128-bit hash of the member's name: of 2^64 names two would be expected to share one
    2      offset: of a tar, where the member's content begins; of a zip, where its local header does
    3      bytes that the content takes in the archive; of a zip also, in the upper 32 bits, the content's CRC-32
    4      twice the archive's position in the list, plus 1 where the content is deflated
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
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
from filelock import FileLock

from ret_lightning.atomic import whole_file
from ret_lightning.data.cache import default_cache_dir
from ret_lightning.errors import DataError
from ret_lightning.progress import progress_bar

VERSION = 1  # to be raised by every change of what an index holds
ROWS = 5
LARGEST = (1 << 32) - 1  # bytes of a member; what is larger is no image and is left out

log = logging.getLogger(__name__)


def member_name(path: str) -> str:
    """A path as archives and rows may write it (`./a//b.jpg`, `a/x/../b.jpg`) in one form, `a/b.jpg`."""
    return posixpath.normpath(path).lstrip("/")


def name_hash(name: str) -> tuple[int, int]:
    """The two halves of a name's hash."""
    # surrogatepass: names in old archives are bytes of any encoding, which Python stands lone surrogates for.
    return struct.unpack("<QQ", blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest())


def index_file(archives: Sequence[Path]) -> Path:
    """The index of these archives, made where there is none, or where a size or time of modification has changed.

    Where a name comes more than once, the last in its archive counts, as tar and zip have it, and the first archive.

    Returns:
        A npy file in the user's cache folder.

    Raises:
        DataError: an archive is missing, broken or of a form that cannot be read in place, or the cache cannot be written.
    """
    folder = default_cache_dir() / "image_archives"
    of_paths = _digest([VERSION, *(str(path.resolve()) for path in archives)])
    file = folder / f"{of_paths}-{_digest([_state(path) for path in archives])}.npy"
    if file.is_file():  # without the lock, so that a finished cache may be read-only
        return file
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{of_paths}.lock"):
            if not file.is_file():
                index = _build(archives)
                with whole_file(file) as unfinished, unfinished.open("wb") as out:
                    np.save(out, index)
                for outdated in folder.glob(f"{of_paths}-*.npy"):
                    if outdated != file:
                        outdated.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(
            f"{folder}: the index of the image archives cannot be written there ({error.strerror or error}): name another "
            "folder with the environment variable XDG_CACHE_HOME"
        ) from error
    return file


def _digest(values: Sequence[object]) -> str:
    return blake2b(repr(values).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _state(path: Path) -> tuple[int, int]:
    try:
        state = os.stat(path)
    except OSError as error:
        raise DataError(f"image archive {path}: {error.strerror}", "missing_archive") from error
    return state.st_size, state.st_mtime_ns


def _build(archives: Sequence[Path]) -> np.ndarray:
    parts: list[np.ndarray] = []
    done, total = 0, sum(path.stat().st_size for path in archives)
    # Quiet when it is done within two seconds.
    with progress_bar(
        desc="indexing image archives", total=total, unit="B", unit_scale=True, delay=2, mininterval=1
    ) as bar:
        for position, path in enumerate(archives):
            entries = array("Q")
            try:
                for name, offset, size, crc, deflated in _members(path):
                    bar.update(done + offset - bar.n)
                    if size <= LARGEST:
                        entries.extend(
                            (*name_hash(member_name(name)), offset, size | crc << 32, 2 * position + deflated)
                        )
            except (tarfile.TarError, zipfile.BadZipFile, EOFError, ValueError, zlib.error, struct.error) as error:
                text = " ".join(str(error).split())
                raise DataError(f"image archive {path}: not whole, or no archive: {text}", "broken_archive") from error
            except OSError as error:
                raise DataError(f"image archive {path}: {error.strerror or error}", "broken_archive") from error
            if not entries:
                raise DataError(f"image archive {path}: there is no file in it", "broken_archive")
            done += path.stat().st_size
            # Turned around: of equal names in an archive the last comes first.
            parts.append(np.frombuffer(entries, dtype=np.uint64).reshape(-1, ROWS)[::-1])
    index = np.concatenate(parts).T
    index = index[:, np.lexsort((index[1], index[0]))]  # stable: equal names stay in the order of the archives
    again = (index[:2, 1:] == index[:2, :-1]).all(axis=0)
    elsewhere = np.flatnonzero(again & (index[4, 1:] // 2 != index[4, :-1] // 2))
    if len(elsewhere):
        first, later = (archives[int(index[4, elsewhere[0] + i]) // 2] for i in (0, 1))
        log.warning(
            "%d images stand in another archive already, and the first counts; one in %s and %s",
            len(elsewhere), first, later,
        )  # fmt: skip
    return np.ascontiguousarray(index[:, np.concatenate(([True], ~again))])


def _members(path: Path) -> Iterator[tuple[str, int, int, int, bool]]:
    """Name, offset, bytes in the archive, CRC-32 or 0, and whether deflated, of every file in an archive."""
    if path.suffix.lower() == ".zip":
        yield from _zip_members(path)
    else:
        yield from _tar_members(path)


def _tar_members(path: Path) -> Iterator[tuple[str, int, int, int, bool]]:
    size, end = path.stat().st_size, 0
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            archive.members = []  # tarfile would keep them all, a kilobyte each
            if member.offset_data + member.size > size:
                raise tarfile.ReadError(f"it ends within {member.name!r}")
            end = member.offset_data + member.size
            if member.isreg() and not member.issparse():
                yield member.name, member.offset_data, member.size, 0, False
    if size - end < 2 * tarfile.BLOCKSIZE:
        log.warning("image archive %s: a tar ends with two empty blocks and this one does not; was it cut off?", path)


def _zip_members(path: Path) -> Iterator[tuple[str, int, int, int, bool]]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.is_dir():
                continue
            if member.flag_bits & 1:
                raise zipfile.BadZipFile(f"{member.filename!r} is encrypted")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                method = zipfile.compressor_names.get(member.compress_type, f"method {member.compress_type}")
                raise zipfile.BadZipFile(
                    f"{member.filename!r} is compressed by {method}; only stored and deflated ones are read in place"
                )
            deflated = member.compress_type == zipfile.ZIP_DEFLATED
            yield member.filename, member.header_offset, member.compress_size, member.CRC, deflated

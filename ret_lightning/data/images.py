"""Where images come from: a folder, tar and zip archives read in place, or the rows themselves; and from there to pixels."""

from __future__ import annotations

import glob
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from ret_lightning.data.archive_index import LARGEST, index_file, member_name, name_hash
from ret_lightning.data.rows import Place
from ret_lightning.errors import DataError
from ret_lightning.inputs import decode_image
from ret_lightning.inputs.decoding import MAX_PIXELS, read_image_file

ARCHIVES = (".tar", ".zip")
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".7z", ".rar")
OPEN_ARCHIVES = 64  # a process; more are closed and opened again
MOST_INFLATED = 1 << 30  # bytes of one image: a deflated member may grow a thousandfold


class ImageSource(Protocol):
    """Encoded images by their path."""

    def read(self, path: str) -> bytes:
        """The file's bytes. Raises DataError of the kinds `path_outside`, `missing_image` or `unreadable_image`."""

    def find(self, path: str) -> None:
        """Raises what `read` would if the file is not there, without reading it."""


class ImageFolder:
    """The images below a folder.

    A path that leaves the folder is refused, be it absolute or by way of `..`. Links in the folder are followed wherever
    they lead: who made the folder made them, whereas paths come with the rows.

    Args:
        folder: what image paths are relative to.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def read(self, path: str) -> bytes:
        """As in `ImageSource`."""
        return read_image_file(self.folder / _inside(path, self.folder))

    def find(self, path: str) -> None:
        """As in `ImageSource`."""
        read_image_file(self.folder / _inside(path, self.folder), most=0)


class ImageArchives:
    """The images in tar archives and zip archives, which are read in place.

    Names count as they stand in the archives, with or without a leading `./`. An object may be handed to other processes,
    forked or spawned; each opens the archives for itself when it reads the first image.

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
                )
            if archive.suffix.lower() not in ARCHIVES:
                raise DataError(
                    f"image archive {archive}: its name must end in {' or '.join(ARCHIVES)}", "broken_archive"
                )
        self._index_file = index_file(self.archives)
        self._open()

    def __getstate__(self) -> dict[str, Any]:
        return {"archives": self.archives, "_index_file": self._index_file}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        """How many images there are."""
        return self._index.shape[1]

    def find(self, path: str) -> None:
        """As in `ImageSource`."""
        self._member(path)

    def read(self, path: str) -> bytes:
        """As in `ImageSource`."""
        name, (offset, size, where) = self._member(path)
        archive = self.archives[where // 2]
        try:
            if archive.suffix.lower() == ".tar":
                return self._bytes(archive, offset, size)
            return self._zip_content(archive, offset, size & LARGEST, crc=size >> 32, deflated=bool(where % 2))
        except (OSError, struct.error, zlib.error, ValueError) as error:
            raise DataError(
                f"image {name!r} cannot be read from {archive}: {error}; is the archive whole?", "unreadable_image"
            ) from error

    def _member(self, path: str) -> tuple[str, list[int]]:
        """A member's name, and what the index holds of it: offset, size and where."""
        name = _inside(path, self.archives[0] if len(self.archives) == 1 else "the archives")
        high, low = name_hash(name)
        hashes = self._index[0]
        at = int(np.searchsorted(hashes, np.uint64(high)))
        while at < len(hashes) and hashes[at] == high and self._index[1, at] != low:
            at += 1
        if at == len(hashes) or hashes[at] != high:
            others = "" if len(self.archives) == 1 else f" nor in {len(self.archives) - 1} other archives"
            raise DataError(f"image {name!r} is not in {self.archives[0]}{others}", "missing_image")
        return name, [int(value) for value in self._index[2:, at]]

    def _open(self) -> None:
        self._index = np.load(self._index_file, mmap_mode="r").view(np.ndarray)
        self._files: dict[Path, BinaryIO] = {}

    def _zip_content(self, archive: Path, offset: int, size: int, crc: int, deflated: bool) -> bytes:
        header = self._bytes(archive, offset, 30)
        if not header.startswith(b"PK\3\4"):
            raise ValueError("there is no member where one is expected")
        name_and_extra = sum(struct.unpack("<HH", header[26:]))  # their lengths; the central directory's may differ
        content = self._bytes(archive, offset + 30 + name_and_extra, size)
        if deflated:
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


class ImageReader:
    """Finds, decodes and transforms the image of a row.

    Args:
        source: where image paths lead; a path stands for the folder of that name.
        transform: an RGB image to pixels (3, size, size); its `least_side`, if it has one, is `decode_image`'s.
        max_pixels: larger images are refused, see `decode_image`.
    """

    def __init__(
        self, source: ImageSource | str | Path, transform: Callable[[Image.Image], Tensor], max_pixels: int = MAX_PIXELS
    ) -> None:
        self.source = ImageFolder(source) if isinstance(source, str | Path) else source
        self.transform = transform
        self.max_pixels = max_pixels

    def __call__(
        self,
        image: str | bytes,
        place: Place,
        subset: str,
        augment: Callable[[Image.Image], Image.Image] | None = None,
    ) -> Tensor:
        """The pixels of an image.

        Args:
            image: a path, or an encoded image that came in the row.
            place: of the row, for messages.
            subset: likewise.
            augment: a change before the transform.

        Returns:
            (3, size, size) float32.

        Raises:
            DataError: naming image, row and subset; of the kinds of `ImageSource.read` and `decode_image`.
        """
        try:
            if isinstance(image, str):
                data, name = self.source.read(image), image
            else:
                data, name = image, "in the row"
            picture = decode_image(data, name, getattr(self.transform, "least_side", None), self.max_pixels)
        except DataError as error:
            raise DataError(f"{place} (subset {subset}): {error}", error.kind) from error
        return self.transform(augment(picture) if augment else picture)


def image_source(location: str | Path | Sequence[str | Path], root: str | Path = "") -> ImageFolder | ImageArchives:
    """A folder or archives by their names.

    Args:
        location: a folder; an archive, that is a name that ends in `.tar` or `.zip` and is no folder; a pattern with `*`, `?`
            or `[` that archives match, which are taken in the order of their names; or a list of archives and patterns.
        root: what `location` is relative to.

    Raises:
        DataError: nothing matches a pattern, or as `ImageArchives`.
    """
    if isinstance(location, str | Path):
        path = Path(root) / location
        suffixes = (*ARCHIVES, *COMPRESSED)
        if path.is_dir() or not (glob.has_magic(str(location)) or path.name.lower().endswith(suffixes)):
            return ImageFolder(path)
        location = [location]
    if not location:
        raise DataError("data.image_folder is an empty list: name a folder, or at least one archive")
    archives: list[Path] = []
    for entry in location:
        path = Path(root) / entry
        if path.is_dir():
            raise DataError(f"data.image_folder: {path} is a folder; a list names archives (.tar, .zip) only")
        if path.exists() or not glob.has_magic(str(entry)):
            archives.append(path)
            continue
        found = sorted(Path(root, name) for name in glob.glob(str(entry), root_dir=root or None, recursive=True))
        if not found:
            raise DataError(f"data.image_folder: no file matches {path}", "missing_archive")
        archives += found
    return ImageArchives(list(dict.fromkeys(archives)))


def _inside(path: str, root: str | Path) -> str:
    """A path below the root, in the form of `member_name`."""
    name = member_name(path)
    if os.path.isabs(path) or name == ".." or name.startswith("../"):
        raise DataError(
            f"image path {path!r} leads out of {root}; paths are relative to it and stay within", "path_outside"
        )
    if "\0" in name or name == ".":
        raise DataError(f"image path {path!r} names no file", "missing_image")
    return name

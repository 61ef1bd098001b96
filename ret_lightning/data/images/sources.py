"""Image sources, and the reader that decodes and transforms their images."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from PIL import Image
from torch import Tensor

from ret_lightning.data.images.archive_index import normalize_image_path
from ret_lightning.data.images.archives import ARCHIVES, COMPRESSED, ImageArchives
from ret_lightning.data.readers.source_location import Location
from ret_lightning.errors import DataError
from ret_lightning.inputs import decode_image
from ret_lightning.inputs.decoding import MAX_PIXELS, read_image_file
from ret_lightning.inputs.near_names import NearMatches, find_near_names


class ImageSource(Protocol):
    """Interface of a collection of encoded images, accessed by path."""

    def read(self, path: str) -> bytes:
        """Return the bytes of an image file.

        Args:
            path: path relative to the root of the collection.

        Raises:
            DataError: of the kind `path_outside`, `missing_image` or `unreadable_image`.
        """

    def find(self, path: str) -> None:
        """Check that an image file exists, without reading it.

        Args:
            path: path relative to the root of the collection.

        Raises:
            DataError: of the kind `path_outside`, `missing_image` or `unreadable_image`.
        """


class ImageFolder:
    """Images in a folder and its subfolders.

    Absolute paths and paths that leave the folder through `..` are rejected, because paths come from the rows. Symbolic links
    in the folder are followed, because they were created by the owner of the folder.

    Args:
        folder: folder that image paths are relative to.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def read(self, path: str) -> bytes:
        """Return the bytes of an image file.

        Args:
            path: path relative to the folder.

        Raises:
            DataError: of the kind `path_outside`, `missing_image` or `unreadable_image`.
        """
        return self._read(path)

    def find(self, path: str) -> None:
        """Check that an image file exists, without reading it.

        Args:
            path: path relative to the folder.

        Raises:
            DataError: of the kind `path_outside`, `missing_image` or `unreadable_image`.
        """
        self._read(path, max_bytes=0)

    def near(self, path: str) -> NearMatches:
        """Find images with a similar path.

        Args:
            path: path of an image that does not exist.
        """
        return find_near_names(self.folder, path)

    def check(self) -> None:
        """Check that the folder exists and can be opened.

        Raises:
            DataError: of the kind `missing_image`.
        """
        if not os.path.exists(self.folder):
            raise DataError(
                f"image folder {self.folder} does not exist; set the folder, or the archives (.tar, .zip), that the image "
                "paths of the rows are relative to",
                "missing_image",
                code="image-folder-missing",
                path=str(self.folder),
            )
        if not os.path.isdir(self.folder):
            raise DataError(
                f"image folder {self.folder} is a file; expected a folder, or an archive with the suffix .tar or .zip",
                "missing_image",
                code="image-folder-is-file",
                path=str(self.folder),
            )
        if not os.access(self.folder, os.X_OK):
            raise DataError(
                f"image folder {self.folder} cannot be opened: permission denied; grant read permission to the current user",
                "missing_image",
                code="image-folder-not-readable",
                path=str(self.folder),
            )

    def _read(self, path: str, max_bytes: int = -1) -> bytes:
        inside = normalize_image_path(path, self.folder, self.near)
        try:
            return read_image_file(self.folder / inside, max_bytes, root=self.folder)
        except DataError as error:
            if error.kind == "missing_image":
                self.check()  # report a missing folder, not one missing image
            raise


class ImageReader:
    """Reader of the images of rows: reads, decodes and transforms.

    Args:
        source: image source, or the path of a folder.
        transform: converts an RGB image to pixels (3, size, size). If it has an attribute `least_side`, large JPEGs are
            decoded at a reduced scale, see `decode_image`.
        max_pixels: images with more pixels are rejected.
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
        location: Location,
        subset: str,
        augment: Callable[[Image.Image], Image.Image] | None = None,
    ) -> Tensor:
        """Read, decode and transform an image.

        Args:
            image: path of the image, or an encoded image that is stored in the row.
            location: source location of the row, for error messages.
            subset: subset of the row, for error messages; may be empty.
            augment: augmentation that is applied before the transform.

        Returns:
            Pixels, (3, size, size) float32.

        Raises:
            DataError: if the image is missing, too large or cannot be decoded; the message names image, row and subset.
        """
        try:
            if isinstance(image, str):
                data, name = self.source.read(image), image
            else:
                data, name = image, "in the row"
            picture = decode_image(data, name, getattr(self.transform, "least_side", None), self.max_pixels)
        except DataError as error:
            message = f"{location}{f' (subset {subset})' if subset else ''}: {error.message}"
            raise DataError(message, error.kind, code=error.code, **error.values) from error
        return self.transform(augment(picture) if augment else picture)


def image_source(location: str | Path | Sequence[str | Path], root: str | Path = "") -> ImageFolder | ImageArchives:
    """Build the image source of a folder or of archives.

    Args:
        location: a folder, an archive (suffix `.tar` or `.zip`), a pattern with `*`, `?` or `[` that matches archives, which
            are sorted by name, or a list of archives and patterns.
        root: folder that `location` is relative to.

    Raises:
        DataError: if a pattern has no match, or an archive is missing, broken or cannot be read in place.
    """
    if isinstance(location, str | Path):
        path = Path(root) / location
        suffixes = (*ARCHIVES, *COMPRESSED)
        if path.is_dir() or not (glob.has_magic(str(location)) or path.name.lower().endswith(suffixes)):
            return ImageFolder(path)
        location = [location]
    if not location:
        raise DataError(
            "data.image_folder is an empty list; expected a folder, or at least one archive",
            code="image-folder-empty-list",
        )
    archives: list[Path] = []
    for entry in location:
        path = Path(root) / entry
        if path.is_dir():
            raise DataError(
                f"data.image_folder: {path} is a folder; expected only archives (.tar, .zip) in a list",
                code="image-folder-in-list",
                path=str(path),
            )
        if path.exists() or not glob.has_magic(str(entry)):
            archives.append(path)
            continue
        found = sorted(Path(root, name) for name in glob.glob(str(entry), root_dir=root or None, recursive=True))
        if not found:
            raise DataError(
                f"data.image_folder: no file matches {path}",
                "missing_archive",
                code="archive-pattern-without-match",
                found=str(path),
            )
        archives += found
    return ImageArchives(list(dict.fromkeys(archives)))

"""Where images come from: a folder, tar and zip archives read in place, or the rows themselves; and from there to pixels."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from PIL import Image
from torch import Tensor

from ret_lightning.data.images.archive_index import path_inside
from ret_lightning.data.images.archives import ARCHIVES, COMPRESSED, ImageArchives
from ret_lightning.data.rows import Place
from ret_lightning.errors import DataError
from ret_lightning.inputs import decode_image
from ret_lightning.inputs.decoding import MAX_PIXELS, read_image_file
from ret_lightning.inputs.near_names import Near, near_names


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
        return self._read(path)

    def find(self, path: str) -> None:
        """As in `ImageSource`."""
        self._read(path, most=0)

    def near(self, path: str) -> Near:
        """The images whose paths are spelled nearly like one that does not exist."""
        return near_names(self.folder, path)

    def check(self) -> None:
        """Raise DataError of the kind `missing_image` unless the folder exists and may be opened."""
        if not os.path.exists(self.folder):
            raise DataError(
                f"image folder {self.folder} does not exist; name the folder, or the archives (.tar, .zip), that the "
                "image paths of the rows are relative to",
                "missing_image",
                code="image-folder-missing",
                path=str(self.folder),
            )
        if not os.path.isdir(self.folder):
            raise DataError(
                f"image folder {self.folder} is a file; name a folder, or an archive whose name ends in .tar or .zip",
                "missing_image",
                code="image-folder-is-file",
                path=str(self.folder),
            )
        if not os.access(self.folder, os.X_OK):
            raise DataError(
                f"image folder {self.folder} cannot be opened (permission denied); make it readable for the user who runs the "
                "command",
                "missing_image",
                code="image-folder-not-readable",
                path=str(self.folder),
            )

    def _read(self, path: str, most: int = -1) -> bytes:
        inside = path_inside(path, self.folder, self.near)
        try:
            return read_image_file(self.folder / inside, most, root=self.folder)
        except DataError as error:
            if error.kind == "missing_image":
                self.check()  # a missing folder is reported as such, not as one missing image
            raise


class ImageReader:
    """Finds, decodes and transforms the image of a row.

    Args:
        source: of the images; a path is that of a folder.
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
        """Read, decode and transform an image.

        Args:
            image: a path, or an encoded image that came in the row.
            place: of the row, for messages.
            subset: of the row, for messages; empty where there is none.
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
            message = f"{place}{f' (subset {subset})' if subset else ''}: {error.message}"
            raise DataError(message, error.kind, code=error.code, **error.values) from error
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
        raise DataError(
            "data.image_folder is an empty list: name a folder, or at least one archive", code="image-folder-empty-list"
        )
    archives: list[Path] = []
    for entry in location:
        path = Path(root) / entry
        if path.is_dir():
            raise DataError(
                f"data.image_folder: {path} is a folder; a list names archives (.tar, .zip) only",
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

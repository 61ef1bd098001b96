"""Git LFS pointers: small text files that a clone contains in place of large files that are not downloaded yet."""

from __future__ import annotations

import re
from pathlib import Path

from ret_lightning.errors import DataError

_VERSION = b"version https://git-lfs.github.com/spec/v1"
LONGEST_POINTER = 1024  # bytes, from the Git LFS specification
_SIZE = re.compile(rb"^size (\d+)\s*$", re.MULTILINE)


def refuse_lfs_pointer(path: str | Path, content: bytes | None = None) -> None:
    """Raise an error if a file is a Git LFS pointer.

    Args:
        path: Path of the file; only used in the message if `content` is given.
        content: Content of the file, or at least its first `LONGEST_POINTER` bytes; None reads the file. A file that
            cannot be read is accepted, so that its reader reports the reason.

    Raises:
        DataError: `git-lfs-pointer`, of kind `lfs_pointer`, with the values `path` and `size`, the number of bytes of the
            file that the pointer refers to.
    """
    if content is None:
        try:
            with Path(path).open("rb") as file:
                content = file.read(LONGEST_POINTER)
        except (OSError, ValueError):
            return
    if not content.startswith(_VERSION):
        return
    found = _SIZE.search(content[:LONGEST_POINTER])
    size = int(found[1]) if found else None
    of_bytes = "" if size is None else f" of {size:,} bytes"
    raise DataError(
        f"{path}: this is a Git LFS pointer, not the file itself{of_bytes}; run `git lfs pull` in its repository",
        "lfs_pointer",
        code="git-lfs-pointer",
        path=str(path),
        size=size,
    )

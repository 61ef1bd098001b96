"""Git LFS pointers: the small text files that a clone holds in place of large files until they are downloaded."""

from __future__ import annotations

import re
from pathlib import Path

from ret_lightning.errors import DataError

_VERSION = b"version https://git-lfs.github.com/spec/v1"
LONGEST_POINTER = 1024  # bytes, by the specification of Git LFS
_SIZE = re.compile(rb"^size (\d+)\s*$", re.MULTILINE)


def refuse_lfs_pointer(path: str | Path, content: bytes | None = None) -> None:
    """Raise an error if a file is a Git LFS pointer; otherwise do nothing.

    Args:
        path: the file; with `content`, any name of it for the message.
        content: the file's content, or at least its first `LONGEST_POINTER` bytes; None: read from the file. A file that
            cannot be read is accepted here, so that its reader reports why.

    Raises:
        DataError: `git-lfs-pointer` of the kind `lfs_pointer`, with `path`, and `size`: the bytes of the file that the pointer
            is for.
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
        f"{path}: this is a Git LFS pointer, not the file itself{of_bytes}; run `git lfs pull` in the repository that it "
        "comes from",
        "lfs_pointer",
        code="git-lfs-pointer",
        path=str(path),
        size=size,
    )

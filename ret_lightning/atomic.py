"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNFINISHED = re.compile(r"\..+\.\d+")  # names of files that are being written: .NAME.PID


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Gives a path beside `path` to write to; it takes the name of `path` when the block ends without an exception.

    The folder is made if it is not there. What stood at `path` stays until then, and for good where the block raises.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.touch()
    permissions = unfinished.stat().st_mode  # as the user's umask wants them; some libraries narrow them
    try:
        yield unfinished
        unfinished.chmod(permissions)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes a UTF-8 text file, whole or not at all."""
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")

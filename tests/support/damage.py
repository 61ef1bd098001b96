"""Damage to files of a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def rewrite(path: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """What changes the content of one file of a folder; `path` is relative to the folder."""

    def damage(root: Path) -> None:
        before = (root / path).read_bytes()
        after = change(before)
        assert after != before
        (root / path).write_bytes(after)

    return damage


def flip(file: Path, place: int | None = None) -> None:
    """Change one bit of the byte at a place, in the file that others may have mapped; None: of the one in the middle."""
    with file.open("r+b") as opened:
        place = file.stat().st_size // 2 if place is None else place
        opened.seek(place)
        byte = opened.read(1)[0]
        opened.seek(place)
        opened.write(bytes([byte ^ 1]))

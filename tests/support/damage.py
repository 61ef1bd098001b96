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

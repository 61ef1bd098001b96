"""Where a row stands, as messages tell it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_BLOCK = 1 << 24


@dataclass(frozen=True)
class Place:
    """A file and the 1-based number of a line in it, or of a row where the file is parquet."""

    file: Path
    line: int

    def __str__(self) -> str:
        return f"{self.file}, row {self.line}" if self.file.suffix == ".parquet" else f"{self.file}:{self.line}"


@dataclass(frozen=True)
class BytePlace:
    """A text file and the byte that a line begins at, for readers that start in the middle of a file.

    The line's number is counted when somebody asks for it: that reads the file up to the line.
    """

    file: Path
    byte: int

    @property
    def line(self) -> int:
        """1-based."""
        count, left = 1, self.byte
        with self.file.open("rb") as file:
            while left > 0 and (block := file.read(min(_BLOCK, left))):
                count += block.count(b"\n")
                left -= len(block)
        return count

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"

"""Where a row stands, as messages tell it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
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
        return lines_at(self.file, [self.byte])[self.byte]

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def lines_at(file: Path, positions: Collection[int]) -> dict[int, int]:
    """The 1-based numbers of the lines that begin at these bytes; the file is read once, up to the last of them."""
    lines, count, at = {}, 1, 0
    with file.open("rb") as content:
        for position in sorted(positions):
            while at < position and (block := content.read(min(_BLOCK, position - at))):
                count += block.count(b"\n")
                at += len(block)
            lines[position] = count
    return lines


def numbered(places: Sequence[Place | BytePlace]) -> list[Place]:
    """Places with their line numbers; a file that several of them are in is read once to count its lines."""
    bytes_of = defaultdict(list)
    for place in places:
        if isinstance(place, BytePlace):
            bytes_of[place.file].append(place.byte)
    lines = {file: lines_at(file, positions) for file, positions in bytes_of.items()}
    return [Place(p.file, lines[p.file][p.byte]) if isinstance(p, BytePlace) else p for p in places]

"""Source locations of rows: the file and the line, as error messages report them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

_BLOCK = 1 << 24


@dataclass(frozen=True)
class SourceLocation:
    """The file and the line of a row.

    Attributes:
        file: path of the file.
        line: 1-based line number, or 1-based row number if the file is parquet.
    """

    file: Path
    line: int

    def __str__(self) -> str:
        return f"{self.file}, row {self.line}" if self.file.suffix == ".parquet" else f"{self.file}:{self.line}"


@dataclass(frozen=True)
class ByteLocation:
    """The file and the byte offset of a line, for readers that start in the middle of a text file.

    Attributes:
        file: path of the file.
        byte: offset of the first byte of the line.
    """

    file: Path
    byte: int

    @property
    def line(self) -> int:
        """1-based line number. Each access reads the file up to the line to count it."""
        return find_line_numbers(self.file, [self.byte])[self.byte]

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


Location: TypeAlias = SourceLocation | ByteLocation


def find_line_numbers(file: Path, offsets: Collection[int]) -> dict[int, int]:
    """Return the 1-based numbers of the lines that begin at some byte offsets.

    The file is read once, up to the largest offset.

    Args:
        file: a text file.
        offsets: byte offsets of the beginnings of lines.

    Returns:
        The line number of each offset.
    """
    lines, count, at = {}, 1, 0
    with file.open("rb") as content:
        for offset in sorted(offsets):
            while at < offset and (block := content.read(min(_BLOCK, offset - at))):
                count += block.count(b"\n")
                at += len(block)
            lines[offset] = count
    return lines


def resolve_lines(locations: Sequence[Location]) -> list[SourceLocation]:
    """Replace byte offsets by line numbers; each file is read at most once.

    Args:
        locations: source locations, in any files and any order.

    Returns:
        The locations with line numbers, in the order of `locations`.
    """
    offsets = defaultdict(list)
    for location in locations:
        if isinstance(location, ByteLocation):
            offsets[location.file].append(location.byte)
    lines = {file: find_line_numbers(file, of_file) for file, of_file in offsets.items()}
    return [SourceLocation(x.file, lines[x.file][x.byte]) if isinstance(x, ByteLocation) else x for x in locations]

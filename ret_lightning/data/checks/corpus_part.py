"""One file of a corpus, or the training files together: cut into scans, and their facts put together again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ret_lightning.data.bad_rows import Tally
from ret_lightning.data.checks.check_report import SAMPLE
from ret_lightning.data.checks.row_scan import Facts, Role, RowScan, SideCounts
from ret_lightning.data.images.sources import ImageReader
from ret_lightning.data.layouts.subset_names import SubsetNames
from ret_lightning.data.readers.row_files import RawRow, RowFiles
from ret_lightning.data.readers.source_location import BytePlace, Place, numbered
from ret_lightning.data.rows import M2KR_ROWS, ExtraColumns, RowParser


@dataclass
class CorpusPart:
    """One file, or the training files: what is in it."""

    name: str
    role: Role
    files: RowFiles
    scans: list[tuple[RowScan, int]]
    facts: list[Facts | None] = field(init=False)

    def __post_init__(self) -> None:
        self.facts = [None] * len(self.scans)

    def joined(self, attribute: str) -> np.ndarray:
        """(n,) int64: an attribute of all stretches, in order."""
        return np.concatenate([getattr(facts, attribute) for facts in self.facts] or [np.zeros(0, np.int64)])

    def listed(self, attribute: str) -> list[Any]:
        """Likewise of lists."""
        return [value for facts in self.facts for value in getattr(facts, attribute)]

    def tally(self, attribute: str) -> Tally:
        """Likewise of tallies."""
        whole = Tally()
        for facts in self.facts:
            whole.update(getattr(facts, attribute))
        return whole

    def sides(self) -> dict[tuple[str, str], SideCounts]:
        """Likewise of the counts by subset and side."""
        whole: dict[tuple[str, str], SideCounts] = {}
        for facts in self.facts:
            for key, counts in facts.sides.items():
                whole.setdefault(key, SideCounts()).update(counts, SAMPLE)
        return whole

    def place(self, position: int) -> Place | BytePlace:
        """Where a good row stands, by its number among all good ones."""
        for (scan, _), facts in zip(self.scans, self.facts, strict=True):
            if position < len(facts.positions):
                return self.files.place(RawRow(b"", scan.stretch.file, int(facts.positions[position])))
            position -= len(facts.positions)
        raise IndexError(position)

    def places(self, positions: list[int]) -> list[Place]:
        """Likewise of several, with their lines."""
        return numbered([self.place(position) for position in positions])


def row_scans(
    files: RowFiles,
    role: Role,
    subset: str | SubsetNames,
    reader: ImageReader | None,
    sampled_parts: int = 32,
    parser: RowParser = M2KR_ROWS,
    extra: ExtraColumns | None = None,
) -> Iterator[tuple[RowScan, int]]:
    """The scans of all stretches of files, each with about the bytes on disk that it reads."""
    stretches = files.stretches()
    every = max(1, len(stretches) // sampled_parts)
    of_file = np.bincount([stretch.file for stretch in stretches])
    for number, stretch in enumerate(stretches):
        # Of a plain file the limits are bytes; another file is taken to be cut into equal parts.
        share = files.paths[stretch.file].stat().st_size // int(of_file[stretch.file])
        size = stretch.stop - stretch.start if stretch.stop else share
        yield RowScan(files, stretch, role, subset, reader, number % every == 0, parser, extra), size


def repeated(values: Iterable[str]) -> list[tuple[int, int]]:
    """The positions of values that stood before, each with the first one of it."""
    firsts: dict[str, int] = {}
    found = []
    for position, value in enumerate(values):
        first = firsts.setdefault(value, position)
        if first != position:
            found.append((position, first))
    return found

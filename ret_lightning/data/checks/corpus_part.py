"""Parts of a corpus: the scans of one part, and their merged results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ret_lightning.data.bad_rows import Tally
from ret_lightning.data.checks.check_report import SAMPLE_SIZE
from ret_lightning.data.checks.row_scan import Role, RowScan, ScanResult, SideCounts
from ret_lightning.data.images.sources import ImageReader
from ret_lightning.data.layouts.subset_names import SubsetNames
from ret_lightning.data.readers.row_files import RawRow, RowFiles
from ret_lightning.data.readers.source_location import Location, SourceLocation, resolve_lines
from ret_lightning.data.rows import M2KR_ROWS, ExtraColumns, RowParser


@dataclass
class CorpusPart:
    """A part of a corpus: the training files, or the queries or the candidate pool of a subset.

    Attributes:
        name: name in the report.
        role: role of the rows.
        files: the files.
        scans: scans of the spans, each with about the bytes on disk that it reads.
        results: results of the scans, in the same order; empty for a scan that is not finished.
    """

    name: str
    role: Role
    files: RowFiles
    scans: list[tuple[RowScan, int]]
    results: list[ScanResult] = field(init=False)

    def __post_init__(self) -> None:
        self.results = [ScanResult() for _ in self.scans]

    def concatenate(self, attribute: str) -> np.ndarray:
        """Concatenate an array attribute of all results, in order: (n,) int64."""
        return np.concatenate([getattr(result, attribute) for result in self.results] or [np.zeros(0, np.int64)])

    def collect(self, attribute: str) -> list[Any]:
        """Concatenate a list attribute of all results, in order."""
        return [value for result in self.results for value in getattr(result, attribute)]

    def merge_tallies(self, attribute: str) -> Tally:
        """Add up a tally attribute of all results."""
        merged = Tally()
        for result in self.results:
            merged.update(getattr(result, attribute))
        return merged

    def merge_sides(self) -> dict[tuple[str, str], SideCounts]:
        """Add up the counts of all results, by subset and side."""
        merged: dict[tuple[str, str], SideCounts] = {}
        for result in self.results:
            for key, counts in result.sides.items():
                merged.setdefault(key, SideCounts()).update(counts, SAMPLE_SIZE)
        return merged

    def location(self, position: int) -> Location:
        """Return the source location of a valid row.

        Args:
            position: index of the row among the valid rows of the part.

        Raises:
            IndexError: if there are not that many valid rows.
        """
        for (scan, _), result in zip(self.scans, self.results, strict=True):
            if position < len(result.positions):
                return self.files.location(RawRow(b"", scan.span.file, int(result.positions[position])))
            position -= len(result.positions)
        raise IndexError(position)

    def locations(self, positions: list[int]) -> list[SourceLocation]:
        """Return the source locations of valid rows, with line numbers.

        Args:
            positions: indices of the rows among the valid rows of the part.
        """
        return resolve_lines([self.location(position) for position in positions])


def plan_scans(
    files: RowFiles,
    role: Role,
    subset: str | SubsetNames,
    reader: ImageReader | None,
    sampled_parts: int = 32,
    parser: RowParser = M2KR_ROWS,
    extra: ExtraColumns | None = None,
) -> Iterator[tuple[RowScan, int]]:
    """Iterate over the scans of all spans of files, each with about the bytes on disk that it reads.

    Args:
        files: the files.
        role: role of the rows.
        subset: subset of the rows, or the rule that returns the subset of a training row.
        reader: reader of images that are stored in the rows; None: they are not checked.
        sampled_parts: number of spans that texts are sampled from, about.
        parser: parser of the rows.
        extra: further fields of training rows that are passed to the loss.
    """
    spans = files.spans()
    every = max(1, len(spans) // sampled_parts)
    of_file = np.bincount([span.file for span in spans])
    for number, span in enumerate(spans):
        # Spans of plain files are byte ranges; those of other files are assumed to be of equal size.
        share = files.paths[span.file].stat().st_size // int(of_file[span.file])
        size = span.stop - span.start if span.stop else share
        yield RowScan(files, span, role, subset, reader, number % every == 0, parser, extra), size


def find_repeated(values: Iterable[str]) -> list[tuple[int, int]]:
    """Return the positions of repeated values, each with the position of its first occurrence."""
    firsts: dict[str, int] = {}
    found = []
    for position, value in enumerate(values):
        first = firsts.setdefault(value, position)
        if first != position:
            found.append((position, first))
    return found

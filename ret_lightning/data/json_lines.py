"""A JSON Lines file as a sequence of lines with their places, read through `datasets` into memory-mapped Arrow.

The lines are kept as text and parsed one by one (rows.py): the columns of ReT-M2KR mix strings, numbers, lists and objects,
which Arrow's own JSON reader refuses, and a parsed table no longer knows the line a mistake stands on.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow.compute

from ret_lightning.data.rows import Place
from ret_lightning.errors import DataError

QUIET_BYTES = 100_000_000  # files below are read in about a second


class JsonLines:
    """The lines of a file, by position; empty ones are passed over.

    Args:
        path: a UTF-8 text file.

    Raises:
        DataError: if the file is missing, empty, or not UTF-8.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise DataError(f"{self.path}: no such file")
        self._lines = _read(self.path)
        if len(self) == 0:
            raise DataError(f"{self.path}: the file is empty")

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> tuple[str, Place]:
        """The line at a position, and its place in the file."""
        position = int(self._positions[index])
        return self._lines[position]["text"], Place(self.path, position + 1)

    def __iter__(self) -> Iterator[tuple[str, Place]]:
        """All lines, read in blocks: many times faster than one by one."""
        block = 10_000
        for start in range(0, len(self), block):
            positions = self._positions[start : start + block]
            for position, text in zip(positions, self._lines[positions]["text"], strict=True):
                yield text, Place(self.path, int(position) + 1)

    @cached_property
    def _positions(self) -> np.ndarray:
        # Only the offsets of the strings are read, 4 bytes a line.
        lengths = pyarrow.compute.binary_length(self._lines.data.column("text")) if len(self._lines) else []
        return np.flatnonzero(np.asarray(lengths))

    def select(self, keep: np.ndarray) -> JsonLines:
        """The same file, with only the positions where `keep`, (len(self),) bool, is True."""
        chosen = object.__new__(JsonLines)
        chosen.path, chosen._lines = self.path, self._lines
        chosen.__dict__["_positions"] = self._positions[keep]
        return chosen


def _read(path: Path):
    import datasets

    size = path.stat().st_size
    if size == 0:
        return []
    # A bar for each of many small files would hide the lines that matter.
    quiet = size < QUIET_BYTES and not datasets.are_progress_bars_disabled()
    if quiet:
        datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(
            "text", data_files=str(path.resolve()), split="train", encoding="utf-8-sig", keep_linebreaks=False
        )
    except datasets.exceptions.DatasetGenerationError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UnicodeDecodeError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise DataError(f"{path}:{_first_undecodable_line(path)}: not UTF-8 text") from None
    finally:
        if quiet:
            datasets.enable_progress_bars()


def _first_undecodable_line(path: Path) -> int:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return 0

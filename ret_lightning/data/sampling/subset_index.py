"""The subset and the passage ids of each training row, from a cached scan of all training files."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from ret_lightning.data.bad_rows import DeferredLocation
from ret_lightning.data.layouts.subset_names import SubsetNames
from ret_lightning.data.readers.row_files import FileSpan, RawRow, RowFiles
from ret_lightning.data.readers.source_location import Location, SourceLocation
from ret_lightning.data.rows import M2KR_ROWS, RowParser
from ret_lightning.errors import DataError, UserError
from ret_lightning.runtime.atomic_files import whole_file
from ret_lightning.runtime.cache_dir import default_cache_dir
from ret_lightning.runtime.cpu_cores import usable_cores
from ret_lightning.runtime.fork_context import fork_context
from ret_lightning.runtime.progress import progress_bar

log = logging.getLogger(__name__)

QUIET_BYTES = 100_000_000  # smaller files are read in this process without a progress bar
_VERSION = 2  # format of the cached files
# The scan does not report bad rows; training does.
_NOWHERE = cast(Location, DeferredLocation(SourceLocation(Path(), 0)))


@dataclass(frozen=True)
class RowSubsets:
    """The subset of each row.

    Attributes:
        names: names of the subsets with rows, in the order of their first rows; `unknown` for rows that do not state one.
        codes: (rows,) uint16, index into `names` of each row, in the order of the files.
    """

    names: tuple[str, ...]
    codes: np.ndarray

    @cached_property
    def counts(self) -> dict[str, int]:
        """Number of rows of each subset."""
        return dict(zip(self.names, np.bincount(self.codes, minlength=len(self.names)).tolist(), strict=True))


@dataclass(frozen=True)
class RowIds:
    """The passage ids and the position of each row.

    Attributes:
        hashes: (ids,) uint64, `hash_passage_id` of each passage id, in order, row by row.
        counts: (rows,) uint32, number of ids of each row; 0 if the row cannot be parsed.
        positions: (rows,) int64, `RawRow.position` of each row.
        file_ends: (files,) int64, number of rows up to the end of each file.
    """

    hashes: np.ndarray
    counts: np.ndarray
    positions: np.ndarray
    file_ends: np.ndarray

    def locations(self, rows: np.ndarray) -> list[tuple[int, int]]:
        """Return the file and the position of rows, as in `RawRow`.

        Args:
            rows: (n,) int64, row numbers.
        """
        files = np.searchsorted(self.file_ends, rows, side="right")
        return list(zip(files.tolist(), self.positions[rows].tolist(), strict=True))


def hash_passage_id(subset: str, passage_id: str) -> int:
    """Return a 64-bit hash of a passage id of a subset (blake2b); it is equal in every process and version."""
    text = f"{subset}\0{passage_id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def scan_subsets(files: RowFiles, known: Sequence[str], parser: RowParser = M2KR_ROWS) -> RowSubsets:
    """Return the subset of each training row, from the cache if the files were scanned before.

    The cache folder is `$XDG_CACHE_HOME/ret_lightning`. Large files are scanned by one process per core, with a progress bar.
    A row that cannot be parsed counts as `unknown`; its error is reported when training reads it.

    Args:
        files: files of the training rows.
        known: subset names that a data_id may begin with.
        parser: parser of the rows.

    Raises:
        DataError: if a file cannot be read to its end, or a scanning process is killed.
    """
    names, codes = _load_scan(files, known, parser, ("names", "codes"))
    return RowSubsets(tuple(names.tolist()), codes)


def scan_passage_ids(files: RowFiles, known: Sequence[str], parser: RowParser = M2KR_ROWS) -> RowIds:
    """Return the passage ids of each training row, from the cache if the files were scanned before.

    Args:
        files: files of the training rows.
        known: subset names that a data_id may begin with.
        parser: parser of the rows.

    Raises:
        DataError: if a file cannot be read to its end, or a scanning process is killed.
    """
    return RowIds(*_load_scan(files, known, parser, tuple(field.name for field in fields(RowIds))))


def _load_scan(files: RowFiles, known: Sequence[str], parser: RowParser, names: Sequence[str]) -> list[np.ndarray]:
    """Return the named arrays of the scan; scan the files unless the arrays are cached."""
    key = json.dumps([_VERSION, files.fingerprint(), list(known), *parser.identity])
    cached = default_cache_dir() / "subsets" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
    if os.path.isfile(cached):  # unlike pathlib, returns False if the folder may not be searched
        with np.load(cached, allow_pickle=False) as file:
            return [file[name] for name in names]
    found = _scan(files, SubsetNames(known), parser)
    try:
        with whole_file(cached) as unfinished, unfinished.open("wb") as file:
            np.savez(file, **cast(Any, found))
    except (OSError, UserError) as error:
        reason = error.message if isinstance(error, UserError) else error.strerror or str(error)
        log.warning(
            "%s: cannot write the scan cache (%s), so the next run scans the training files again; set XDG_CACHE_HOME to a "
            "writable folder",
            cached,
            reason,
        )
    return [found[name] for name in names]


def _scan(files: RowFiles, names: SubsetNames, parser: RowParser) -> dict[str, np.ndarray]:
    """Scan the files, and return the arrays of `RowSubsets` and `RowIds`."""
    spans = files.spans()
    codes_by_name: dict[str, int] = {}
    parts: list[_Part] = []
    rows_of_file = np.zeros(len(files.paths), np.int64)
    for span, part in zip(spans, _scan_spans(files, names, parser, spans), strict=True):
        own = [codes_by_name.setdefault(name, len(codes_by_name)) for name in part.names]
        part.codes = np.array(own, np.uint16)[part.codes]
        rows_of_file[span.file] += len(part.codes)
        parts.append(part)
    return {
        "names": np.array(list(codes_by_name), np.str_),
        "codes": np.concatenate([np.zeros(0, np.uint16), *(part.codes for part in parts)]),
        "hashes": np.concatenate([np.zeros(0, np.uint64), *(part.hashes for part in parts)]),
        "counts": np.concatenate([np.zeros(0, np.uint32), *(part.counts for part in parts)]),
        "positions": np.concatenate([np.zeros(0, np.int64), *(part.positions for part in parts)]),
        "file_ends": np.cumsum(rows_of_file),
    }


@dataclass
class _Part:
    """The arrays of one span of a file; `codes` are indices into its own `names`."""

    names: list[str]
    codes: np.ndarray
    hashes: np.ndarray
    counts: np.ndarray
    positions: np.ndarray


def _scan_spans(files: RowFiles, names: SubsetNames, parser: RowParser, spans: Sequence[FileSpan]) -> Iterator[_Part]:
    scan = partial(_scan_span, files, names, parser)
    if files.size() < QUIET_BYTES or len(spans) == 1:
        yield from map(scan, spans)
        return
    name = Path(str(files)).name
    with (
        ProcessPoolExecutor(min(len(spans), usable_cores()), fork_context()) as executor,
        progress_bar(total=len(spans), desc=f"scanning subsets and passage ids of {name}", unit="part") as bar,
    ):
        try:
            for result in executor.map(scan, spans):
                yield result
                bar.update()
        except BrokenProcessPool:
            raise DataError(
                f"{files}: a process that scans the training rows was killed, probably because the machine ran out of memory; "
                "free memory and run the command again",
                code="scan-process-killed",
                path=str(files),
            ) from None


def _scan_span(files: RowFiles, names: SubsetNames, parser: RowParser, span: FileSpan) -> _Part:
    positions_of: dict[str, int] = {}
    codes, hashes, counts, positions = [], [], [], []
    for row in files.read(span):
        found, ids = _parse_subset_and_ids(parser, row)
        subset = names(*found)
        codes.append(positions_of.setdefault(subset, len(positions_of)))
        hashes += [hash_passage_id(subset, passage_id) for passage_id in ids]
        counts.append(len(ids))
        positions.append(row.position)
    return _Part(
        list(positions_of),
        np.array(codes, np.int64),
        np.array(hashes, np.uint64),
        np.array(counts, np.uint32),
        np.array(positions, np.int64),
    )


def _parse_subset_and_ids(parser: RowParser, row: RawRow) -> tuple[tuple[str | None, str], tuple[str, ...]]:
    """Parse the subset field, the data_id and the passage ids of a row; a bad row has no ids, so it is not held out."""
    try:
        fields = parser.fields(row.content, _NOWHERE)
    except DataError:
        return (None, ""), ()
    try:
        return parser.subset(fields), parser.pair(fields).query.passage_ids
    except DataError:
        return parser.subset(fields), ()

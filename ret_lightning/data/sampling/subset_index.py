"""The subset and the passage ids of each training row, read once from the whole of the files and cached."""

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

import numpy as np

from ret_lightning.data.bad_rows import UntoldPlace
from ret_lightning.data.layouts.subset_names import SubsetNames
from ret_lightning.data.readers.row_files import RawRow, RowFiles, Stretch
from ret_lightning.data.readers.source_location import Place
from ret_lightning.data.rows import M2KR_ROWS, RowParser
from ret_lightning.errors import DataError, UserError
from ret_lightning.runtime.atomic_files import whole_file
from ret_lightning.runtime.cache_dir import default_cache_dir
from ret_lightning.runtime.cpu_cores import usable_cores
from ret_lightning.runtime.fork_context import fork_context
from ret_lightning.runtime.progress import progress_bar

log = logging.getLogger(__name__)

QUIET_BYTES = 100_000_000  # files below are read in about a second, faster than processes start
_VERSION = 2  # of the cached files
_NOWHERE = UntoldPlace(Place(Path(), 0))  # bad rows are counted here, and reported where they are read for training


@dataclass(frozen=True)
class RowSubsets:
    """The subset of each row.

    Attributes:
        names: of the subsets that have rows, in the order of their first rows; `unknown` for rows that do not tell.
        codes: (rows,) uint16, positions in `names`, in the order of the files.
    """

    names: tuple[str, ...]
    codes: np.ndarray

    @cached_property
    def counts(self) -> dict[str, int]:
        """Rows of each subset."""
        return dict(zip(self.names, np.bincount(self.codes, minlength=len(self.names)).tolist(), strict=True))


@dataclass(frozen=True)
class RowIds:
    """The passage ids of each row, and where each row is.

    Attributes:
        hashes: (ids,) uint64, `hash_passage_id` of each row's passage ids in their order, row after row.
        counts: (rows,) uint32, how many ids each row has; 0 where the row cannot be parsed.
        positions: (rows,) int64, see `RawRow`.
        file_ends: (files,) int64, how many rows there are up to the end of each file.
    """

    hashes: np.ndarray
    counts: np.ndarray
    positions: np.ndarray
    file_ends: np.ndarray

    def locations(self, rows: np.ndarray) -> list[tuple[int, int]]:
        """File and position of some rows, see `RawRow`."""
        files = np.searchsorted(self.file_ends, rows, side="right")
        return list(zip(files.tolist(), self.positions[rows].tolist(), strict=True))


def hash_passage_id(subset: str, passage_id: str) -> int:
    """A passage id of a subset as 64 bits: the same in every process, run and version."""
    text = f"{subset}\0{passage_id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def scan_subsets(files: RowFiles, known: Sequence[str], parser: RowParser = M2KR_ROWS) -> RowSubsets:
    """The subset of each row, from the cache folder (`$XDG_CACHE_HOME/ret_lightning`) where the files were read before.

    Large files are read by as many processes as there are cores, with a progress bar. A row that cannot be parsed counts
    as `unknown`: its error is reported where it is read for training.

    Args:
        files: of training rows.
        known: names that a data_id may begin with.
        parser: of the rows.

    Raises:
        DataError: if a file cannot be read to its end, or a process is killed.
    """
    names, codes = _scanned(files, known, parser, ("names", "codes"))
    return RowSubsets(tuple(names.tolist()), codes)


def scan_passage_ids(files: RowFiles, known: Sequence[str], parser: RowParser = M2KR_ROWS) -> RowIds:
    """The passage ids of each row, from the same scan and cache as `scan_subsets`, with the same arguments and errors."""
    return RowIds(*_scanned(files, known, parser, tuple(field.name for field in fields(RowIds))))


def _scanned(files: RowFiles, known: Sequence[str], parser: RowParser, wanted: Sequence[str]) -> list[np.ndarray]:
    """Arrays of the scan by name."""
    what = json.dumps([_VERSION, files.fingerprint(), list(known), *parser.identity])
    cached = default_cache_dir() / "subsets" / f"{hashlib.sha256(what.encode()).hexdigest()[:32]}.npz"
    if os.path.isfile(cached):  # False too where the folder may not be searched, and pathlib would raise
        with np.load(cached, allow_pickle=False) as file:
            return [file[name] for name in wanted]
    found = _scan(files, SubsetNames(known), parser)
    try:
        with whole_file(cached) as unfinished, unfinished.open("wb") as file:
            np.savez(file, **found)
    except (OSError, UserError) as error:
        reason = error.message if isinstance(error, UserError) else error.strerror or str(error)
        log.warning(
            "%s: cannot be written (%s), so the next run scans the training files again; name another folder with the "
            "environment variable XDG_CACHE_HOME",
            cached,
            reason,
        )
    return [found[name] for name in wanted]


def _scan(files: RowFiles, names: SubsetNames, parser: RowParser) -> dict[str, np.ndarray]:
    """The arrays of `RowSubsets` and `RowIds`."""
    stretches = files.stretches()
    codes_by_name: dict[str, int] = {}
    parts: list[_Part] = []
    rows_of_file = np.zeros(len(files.paths), np.int64)
    for stretch, part in zip(stretches, _read_all(files, names, parser, stretches), strict=True):
        own = [codes_by_name.setdefault(name, len(codes_by_name)) for name in part.names]
        part.codes = np.array(own, np.uint16)[part.codes]
        rows_of_file[stretch.file] += len(part.codes)
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
    """The arrays of one stretch; `codes` are positions in `names`, which are those that occur in it."""

    names: list[str]
    codes: np.ndarray
    hashes: np.ndarray
    counts: np.ndarray
    positions: np.ndarray


def _read_all(files: RowFiles, names: SubsetNames, parser: RowParser, stretches: Sequence[Stretch]) -> Iterator[_Part]:
    read = partial(_read, files, names, parser)
    if files.size() < QUIET_BYTES or len(stretches) == 1:
        yield from map(read, stretches)
        return
    name = Path(str(files)).name
    with (
        ProcessPoolExecutor(min(len(stretches), usable_cores()), fork_context()) as pool,
        progress_bar(total=len(stretches), desc=f"scanning subsets and passage ids of {name}", unit="part") as bar,
    ):
        try:
            for result in pool.map(read, stretches):
                yield result
                bar.update()
        except BrokenProcessPool:
            raise DataError(
                f"{files}: a process that scanned the training rows was killed, most likely because memory ran out; "
                "free memory, and run the command again",
                code="scan-process-killed",
                path=str(files),
            ) from None


def _read(files: RowFiles, names: SubsetNames, parser: RowParser, stretch: Stretch) -> _Part:
    positions_of: dict[str, int] = {}
    codes, hashes, counts, positions = [], [], [], []
    for row in files.read(stretch):
        found, ids = _subset_and_ids(parser, row)
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


def _subset_and_ids(parser: RowParser, row: RawRow) -> tuple[tuple[str | None, str], tuple[str, ...]]:
    """What decides the subset of a row, and its passage ids: none of a row that training cannot use, so it is not held out."""
    try:
        fields = parser.fields(row.content, _NOWHERE)
    except DataError:
        return (None, ""), ()
    try:
        return parser.subset(fields), parser.pair(fields).query.passage_ids
    except DataError:
        return parser.subset(fields), ()

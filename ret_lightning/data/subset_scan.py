"""Which subset each training row is of, read once from the whole of the files and remembered."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from ret_lightning.atomic import whole_file
from ret_lightning.data.glyphs import default_cache_dir
from ret_lightning.data.m2kr import SubsetNames
from ret_lightning.data.row_files import RowFiles, Stretch
from ret_lightning.data.rows import subset_fields
from ret_lightning.progress import progress_bar

log = logging.getLogger(__name__)

QUIET_BYTES = 100_000_000  # files below are read in about a second, faster than processes start
_VERSION = 1  # of the remembered files


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


def row_subsets(files: RowFiles, known: Sequence[str]) -> RowSubsets:
    """The subset of each row, from the cache folder (`$XDG_CACHE_HOME/ret_lightning`) where the files were read before.

    Large files are read by as many processes as there are cores, with a progress bar. A row that cannot be parsed counts
    as `unknown`: what is wrong with it is told where it is read for training.

    Args:
        files: of training rows.
        known: names that a data_id may begin with.
    """
    what = json.dumps([_VERSION, files.fingerprint(), list(known)])
    remembered = default_cache_dir() / "subsets" / f"{hashlib.sha256(what.encode()).hexdigest()[:32]}.npz"
    if remembered.is_file():
        with np.load(remembered, allow_pickle=False) as file:
            return RowSubsets(tuple(file["names"].tolist()), file["codes"])
    found = _scan(files, SubsetNames(known))
    try:
        with whole_file(remembered) as unfinished, unfinished.open("wb") as file:
            np.savez(file, names=np.array(found.names, dtype=np.str_), codes=found.codes)
    except OSError as error:
        log.warning("%s cannot be written (%s): the subsets of the rows will be looked up again", remembered, error)
    return found


def _scan(files: RowFiles, names: SubsetNames) -> RowSubsets:
    stretches = files.stretches()
    codes_by_name: dict[str, int] = {}
    parts = []
    for found, codes in _read_all(files, names, stretches):
        own = [codes_by_name.setdefault(name, len(codes_by_name)) for name in found]
        parts.append(np.array(own, np.uint16)[codes])
    return RowSubsets(tuple(codes_by_name), np.concatenate(parts) if parts else np.zeros(0, np.uint16))


def _read_all(
    files: RowFiles, names: SubsetNames, stretches: Sequence[Stretch]
) -> Iterator[tuple[list[str], np.ndarray]]:
    read = partial(_read, files, names)
    if files.size() < QUIET_BYTES or len(stretches) == 1:
        yield from map(read, stretches)
        return
    with (
        ProcessPoolExecutor(min(len(stretches), len(os.sched_getaffinity(0)))) as pool,
        progress_bar(
            total=len(stretches), desc=f"looking for subsets in {Path(str(files)).name}", unit="stretch"
        ) as bar,
    ):
        for result in pool.map(read, stretches):
            yield result
            bar.update()


def _read(files: RowFiles, names: SubsetNames, stretch: Stretch) -> tuple[list[str], np.ndarray]:
    """The names that occur in a stretch, and for each of its rows the position of its name among them."""
    positions: dict[str, int] = {}
    codes = [positions.setdefault(names(*subset_fields(row.content)), len(positions)) for row in files.read(stretch)]
    return list(positions), np.array(codes, np.int64)

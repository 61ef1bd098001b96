"""Selection of training rows held out for validation; it depends on passage ids only, so all runs on a corpus agree."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ret_lightning.data.readers.row_files import RowFiles
from ret_lightning.data.rows import M2KR_ROWS, RowParser
from ret_lightning.data.sampling.subset_index import RowIds, scan_passage_ids, scan_subsets
from ret_lightning.errors import ConfigError

DISTRACTORS = 1_000  # training passages in a candidate pool, unless `data.validation_pool` is set


@dataclass(frozen=True)
class HoldoutLimits:
    """Limits on the training rows of a subset that are removed from training.

    Attributes:
        rows: `data.holdout_rows`, maximum number of rows, at least 1.
        fraction: `data.holdout_fraction`, maximum share of the subset's rows, in (0, 1). If no set of passage ids is within
            it, the set with the fewest rows is held out.
        pool: `data.validation_pool`, size of the candidate pool; None: the positives and `DISTRACTORS` other passages.

    Raises:
        ConfigError: if a limit is out of range.
    """

    rows: int = 1_000
    fraction: float = 0.02
    pool: int | None = None

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ConfigError(
                f"data.holdout_rows={self.rows}: expected at least 1; set data.validation=test to hold out no rows",
                code="holdout-rows-out-of-range",
                key="data.holdout_rows",
                found=self.rows,
            )
        if not 0 < self.fraction < 1:
            raise ConfigError(
                f"data.holdout_fraction={self.fraction}: expected a number greater than 0 and less than 1",
                code="holdout-fraction-out-of-range",
                key="data.holdout_fraction",
                found=self.fraction,
            )


@dataclass(frozen=True)
class SubsetHoldout:
    """The rows held out of one subset; all arrays are ascending row numbers among all training rows.

    Attributes:
        rows: number of rows of the subset that training can use.
        held_out: rows whose passage ids are all held out; these are the validation queries.
        left_out: rows with some, but not all, ids held out; they are used neither for training nor for validation.
        passages: rows whose first passages form the candidate pool: the positives and training passages, each id once.
        reason: why no row is held out; empty if rows are held out.
    """

    rows: int
    held_out: np.ndarray
    left_out: np.ndarray
    passages: np.ndarray
    reason: str = ""


@dataclass(frozen=True)
class Holdout:
    """The rows held out of a corpus.

    Attributes:
        files: files of the training rows.
        parser: parser of the rows.
        subsets: the held-out rows of each requested subset, by name.
        removed: (n,) int64, ascending numbers of all rows that are removed from training.
        locations: (file, position), as in `RawRow`, of the removed rows and of the rows of the candidate pools, by number.
    """

    files: RowFiles
    parser: RowParser
    subsets: dict[str, SubsetHoldout]
    removed: np.ndarray
    locations: Mapping[int, tuple[int, int]]

    @property
    def removed_locations(self) -> frozenset[tuple[int, int]]:
        """(file, position) of each row that is removed from training."""
        return frozenset(self.locations[row] for row in self.removed.tolist())


def hold_out(
    files: RowFiles,
    known: Sequence[str],
    names: Sequence[str],
    limits: HoldoutLimits,
    parser: RowParser = M2KR_ROWS,
) -> Holdout:
    """Select the rows to hold out of each subset.

    Sets of passage ids are taken in the order of their hashes (`hash_passage_id`, without a seed) while the rows that contain
    any of the ids stay within the limits. A set that would exceed the limits is skipped. The result does not depend on the
    order of the rows, on other subsets, or on the other settings of a run.

    Args:
        files: files of the training rows; the result of scanning them is cached.
        known: subset names that a data_id may begin with.
        names: names of the subsets to hold out rows of.
        limits: limits for each subset.
        parser: parser of the rows.

    Raises:
        DataError: if the files cannot be scanned.
    """
    subsets, ids = scan_subsets(files, known, parser), scan_passage_ids(files, known, parser)
    ends = np.cumsum(ids.counts, dtype=np.int64)
    found = {}
    for name in names:
        rows = np.zeros(0, np.int64)
        if name in subsets.names:
            rows = np.flatnonzero((subsets.codes == subsets.names.index(name)) & (ids.counts > 0))
        found[name] = _hold_out_subset(rows, ids, ends, limits)
    empty = np.zeros(0, np.int64)
    removed = np.unique(np.concatenate([empty, *(part for f in found.values() for part in (f.held_out, f.left_out))]))
    needed = np.unique(np.concatenate([removed, *(f.passages for f in found.values())]))
    locations = dict(zip(needed.tolist(), ids.locations(needed), strict=True))
    return Holdout(files, parser, found, removed, locations)


def _hold_out_subset(rows: np.ndarray, ids: RowIds, ends: np.ndarray, limits: HoldoutLimits) -> SubsetHoldout:
    nothing = np.zeros(0, np.int64)
    if len(rows) == 0:
        return SubsetHoldout(0, nothing, nothing, nothing, "no training rows")
    counts = ids.counts[rows].astype(np.int64)
    starts = np.cumsum(counts) - counts
    hashes = ids.hashes[np.repeat(ends[rows] - counts - starts, counts) + np.arange(counts.sum())]
    unique, ranks = np.unique(hashes, return_inverse=True)  # a rank is a position in the sorted hashes
    sets = _IdSets(hashes, ranks, starts, counts, len(unique))
    held = sets.select(min(limits.rows, math.floor(limits.fraction * len(rows))))
    if not held.any():
        held = sets.select_smallest(min(limits.rows, len(rows) - 1))
    if not held.any():
        return SubsetHoldout(len(rows), nothing, nothing, nothing, _reason(len(rows), len(unique), limits))
    of_row = np.add.reduceat(held[ranks].astype(np.int64), starts)
    held_out, training = of_row == counts, of_row == 0
    firsts = ranks[starts]
    positives = _first_rows(firsts, held[firsts])
    others = _first_rows(firsts, training)
    distractors = DISTRACTORS if limits.pool is None else limits.pool - len(positives)
    # Held-out ids have small hashes, so the distractors are those with the largest.
    others = others[max(0, len(others) - max(0, distractors)) :]
    return SubsetHoldout(
        rows=len(rows),
        held_out=rows[held_out],
        left_out=rows[~held_out & ~training],
        passages=rows[np.sort(np.concatenate([positives, others]))],
    )


def _first_rows(firsts: np.ndarray, is_included: np.ndarray) -> np.ndarray:
    """Return the first included row of each distinct first id, in the order of the ids' hashes."""
    rows = np.flatnonzero(is_included)
    return rows[np.unique(firsts[rows], return_index=True)[1]]


def _reason(rows: int, ids: int, limits: HoldoutLimits) -> str:
    if ids == 1:
        return f"its {rows} training rows have the same passage id"
    return (
        f"no passage id can be held out of its {rows} training rows: each would remove more than "
        f"data.holdout_rows={limits.rows} rows, or all of them, from training"
    )


class _IdSets:
    """The distinct sets of passage ids of a subset's rows, sorted by their smallest hash.

    Args:
        hashes: (n,) uint64, hashes of the ids of all rows, row by row.
        ranks: (n,) int64, position of each hash among the sorted distinct hashes.
        starts: (rows,) int64, index of the first id of each row.
        counts: (rows,) int64, number of ids of each row.
        ids: number of distinct ids.
    """

    def __init__(self, hashes: np.ndarray, ranks: np.ndarray, starts: np.ndarray, counts: np.ndarray, ids: int) -> None:
        # The sum of a set's hashes modulo 2**64 identifies the set independently of the order of its ids.
        smallest, total = np.minimum.reduceat(ranks, starts), np.add.reduceat(hashes, starts)
        order = np.lexsort((total, smallest))
        is_first = np.ones(len(order), bool)
        is_first[1:] = (np.diff(smallest[order]) != 0) | (total[order][1:] != total[order][:-1])
        begins = np.flatnonzero(is_first)
        self.rows: list[int] = np.diff(np.append(begins, len(order))).tolist()  # number of rows of each set
        rows = order[begins]
        sizes = counts[rows]
        self._ends = np.cumsum(sizes)
        self._members = ranks[np.repeat(starts[rows] - (self._ends - sizes), sizes) + np.arange(sizes.sum())]
        # The inverse map: the sets that contain an id.
        by_id = np.argsort(self._members, kind="stable")
        self._owners = np.repeat(np.arange(len(rows)), sizes)[by_id]
        self._owner_starts = np.searchsorted(self._members[by_id], np.arange(ids + 1))
        # Lower bound of a set's cost: the largest number of rows of any of its ids.
        self._least = np.maximum.reduceat(np.bincount(ranks)[self._members], self._ends - sizes)

    def select(self, limit: int) -> np.ndarray:
        """Select sets in order while at most `limit` rows contain any selected id; return a mask of the ids, (ids,) bool."""
        held = self._empty_mask()
        affected: set[int] = set()
        for number in np.flatnonzero(self._least <= limit).tolist():
            if self.rows[number] > limit and number not in affected:
                continue
            new = self._affected(number, held) - affected
            cost = sum(self.rows[other] for other in new)
            if cost <= limit:
                held[self._ids(number)] = True
                affected |= new
                limit -= cost
        return held

    def select_smallest(self, limit: int) -> np.ndarray:
        """Select the first set that affects the fewest rows, at most `limit`; return a mask of its ids, (ids,) bool."""
        held, best, cost = self._empty_mask(), None, limit + 1
        for number in np.argsort(self._least, kind="stable").tolist():
            if self._least[number] >= cost:
                break
            own = sum(self.rows[other] for other in self._affected(number, held))
            if own < cost:
                best, cost = number, own
        if best is not None:
            held[self._ids(best)] = True
        return held

    def _empty_mask(self) -> np.ndarray:
        return np.zeros(len(self._owner_starts) - 1, bool)

    def _ids(self, number: int) -> np.ndarray:
        """Return the ids of a set."""
        return self._members[self._ends[number - 1] if number else 0 : self._ends[number]]

    def _affected(self, number: int, held: np.ndarray) -> set[int]:
        """Return the sets that contain any id of a set that is not held out yet."""
        ids = self._ids(number)
        return {
            other
            for i in ids[~held[ids]].tolist()
            for other in self._owners[self._owner_starts[i] : self._owner_starts[i + 1]].tolist()
        }

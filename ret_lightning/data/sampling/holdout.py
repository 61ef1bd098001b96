"""Training rows held out for validation, chosen by their passage ids alone, so that all runs on a corpus share them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ret_lightning.data.readers.row_files import RowFiles
from ret_lightning.data.rows import M2KR_ROWS, RowParser
from ret_lightning.data.sampling.subset_index import RowIds, scan_passage_ids, scan_subsets
from ret_lightning.errors import ConfigError

DISTRACTORS = 1_000  # training passages of a pool, unless its size is set


@dataclass(frozen=True)
class HoldoutLimits:
    """How many training rows of a subset are taken out of training at most.

    Attributes:
        rows: `data.holdout_rows`.
        fraction: `data.holdout_fraction`, of the subset's rows. A subset of which no passage id fits within it holds out the
            id with the fewest rows.
        pool: `data.validation_pool`, passages of a subset's pool; None: the positives and `DISTRACTORS` others.

    Raises:
        ConfigError: if a limit is out of range.
    """

    rows: int = 1_000
    fraction: float = 0.02
    pool: int | None = None

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ConfigError(
                f"data.holdout_rows={self.rows} must be at least 1; data.validation=test holds out nothing",
                code="holdout-rows-out-of-range",
                found=self.rows,
            )
        if not 0 < self.fraction < 1:
            raise ConfigError(
                f"data.holdout_fraction={self.fraction} must be more than 0 and less than 1",
                code="holdout-fraction-out-of-range",
                found=self.fraction,
            )


@dataclass(frozen=True)
class SubsetHoldout:
    """What is held out of one subset; rows are numbers among all training rows, ascending.

    Attributes:
        rows: how many rows the subset has that training can use.
        held_out: rows all of whose passage ids are held out: the validation queries.
        left_out: rows of which some ids are held out and others are not: neither trained nor validated on.
        passages: rows whose first passages are the pool: the positives and training passages, each id once.
        reason: why nothing is held out; empty where something is.
    """

    rows: int
    held_out: np.ndarray
    left_out: np.ndarray
    passages: np.ndarray
    reason: str = ""


@dataclass(frozen=True)
class Holdout:
    """What is held out of a corpus.

    Attributes:
        files: of the training rows.
        parser: of the rows.
        subsets: by name; those that were asked for.
        removed: (n,) int64, numbers of all rows that are not trained on, ascending.
        locations: of these rows and of those of the pools, number to file and position, see `RawRow`.
    """

    files: RowFiles
    parser: RowParser
    subsets: dict[str, SubsetHoldout]
    removed: np.ndarray
    locations: Mapping[int, tuple[int, int]]

    @property
    def removed_locations(self) -> frozenset[tuple[int, int]]:
        """File and position of each row that is not trained on."""
        return frozenset(self.locations[row] for row in self.removed.tolist())


def hold_out(
    files: RowFiles,
    known: Sequence[str],
    names: Sequence[str],
    limits: HoldoutLimits,
    parser: RowParser = M2KR_ROWS,
) -> Holdout:
    """Chooses the rows that are held out of each subset.

    Sets of passage ids are taken in the order of their hashes (`hash_passage_id`, without a seed) while the rows that contain
    any of the ids stay within the limits. A set that would exceed the limits is skipped. The result does not depend on the
    order of the rows, on other subsets, or on the other settings of a run.

    Args:
        files: of the training rows; they are scanned the first time, see `scan_subsets`.
        known: names that a data_id may begin with.
        names: of the subsets.
        limits: of each.
        parser: of the rows.

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
        found[name] = _subset(rows, ids, ends, limits)
    empty = np.zeros(0, np.int64)
    removed = np.unique(np.concatenate([empty, *(part for f in found.values() for part in (f.held_out, f.left_out))]))
    needed = np.unique(np.concatenate([removed, *(f.passages for f in found.values())]))
    locations = dict(zip(needed.tolist(), ids.locations(needed), strict=True))
    return Holdout(files, parser, found, removed, locations)


def _subset(rows: np.ndarray, ids: RowIds, ends: np.ndarray, limits: HoldoutLimits) -> SubsetHoldout:
    nothing = np.zeros(0, np.int64)
    if len(rows) == 0:
        return SubsetHoldout(0, nothing, nothing, nothing, "no training rows")
    counts = ids.counts[rows].astype(np.int64)
    starts = np.cumsum(counts) - counts
    hashes = ids.hashes[np.repeat(ends[rows] - counts - starts, counts) + np.arange(counts.sum())]
    unique, ranks = np.unique(hashes, return_inverse=True)  # a rank is a place in the order of the hashes
    sets = _IdSets(hashes, ranks, starts, counts, len(unique))
    held = sets.chosen(min(limits.rows, math.floor(limits.fraction * len(rows))))
    if not held.any():
        held = sets.smallest(min(limits.rows, len(rows) - 1))
    if not held.any():
        return SubsetHoldout(len(rows), nothing, nothing, nothing, _reason(len(rows), len(unique), limits))
    of_row = np.add.reduceat(held[ranks].astype(np.int64), starts)
    held_out, training = of_row == counts, of_row == 0
    firsts = ranks[starts]
    positives = _first_rows(firsts, held[firsts])
    others = _first_rows(firsts, training)
    wanted = DISTRACTORS if limits.pool is None else limits.pool - len(positives)
    others = others[
        max(0, len(others) - max(0, wanted)) :
    ]  # those with the largest hashes, at the other end of the order
    return SubsetHoldout(
        rows=len(rows),
        held_out=rows[held_out],
        left_out=rows[~held_out & ~training],
        passages=rows[np.sort(np.concatenate([positives, others]))],
    )


def _first_rows(firsts: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Of the wanted rows the first of each first id, in the order of the ids' hashes."""
    rows = np.flatnonzero(wanted)
    return rows[np.unique(firsts[rows], return_index=True)[1]]


def _reason(rows: int, ids: int, limits: HoldoutLimits) -> str:
    if ids == 1:
        return f"its {rows} training rows have one and the same passage id"
    return (
        f"no passage id can be held out of its {rows} training rows: each takes more than "
        f"data.holdout_rows={limits.rows} rows, or all of them, out of training"
    )


class _IdSets:
    """The distinct sets of ids that the rows of a subset name, in the order of their hashes.

    Args:
        hashes: (n,) uint64, the ids of all rows, row after row.
        ranks: (n,) of these the places in the order of the hashes.
        starts: (rows,) where the ids of each row begin.
        counts: (rows,) how many each row has.
        ids: how many different ids there are.
    """

    def __init__(self, hashes: np.ndarray, ranks: np.ndarray, starts: np.ndarray, counts: np.ndarray, ids: int) -> None:
        # Hashes are random, so that the sum of a set's (modulo 2**64) identifies the set, whatever its order.
        smallest, total = np.minimum.reduceat(ranks, starts), np.add.reduceat(hashes, starts)
        order = np.lexsort((total, smallest))
        is_first = np.ones(len(order), bool)
        is_first[1:] = (np.diff(smallest[order]) != 0) | (total[order][1:] != total[order][:-1])
        begins = np.flatnonzero(is_first)
        self.rows: list[int] = np.diff(np.append(begins, len(order))).tolist()  # of each set
        rows = order[begins]
        sizes = counts[rows]
        self._ends = np.cumsum(sizes)
        self._members = ranks[np.repeat(starts[rows] - (self._ends - sizes), sizes) + np.arange(sizes.sum())]
        # The other way round: which sets have an id, and how many rows.
        by_id = np.argsort(self._members, kind="stable")
        self._owners = np.repeat(np.arange(len(rows)), sizes)[by_id]
        self._owner_starts = np.searchsorted(self._members[by_id], np.arange(ids + 1))
        # No set costs less than the rows of any of its ids.
        self._least = np.maximum.reduceat(np.bincount(ranks)[self._members], self._ends - sizes)

    def chosen(self, limit: int) -> np.ndarray:
        """(ids,) bool: the ids of as many sets as fit, in their order, where at most `limit` rows name any of these ids."""
        held = self._none()
        affected: set[int] = set()
        for number in np.flatnonzero(self._least <= limit).tolist():
            if self.rows[number] > limit and number not in affected:
                continue
            new = self._affected(number, held) - affected
            cost = sum(self.rows[other] for other in new)
            if cost <= limit:
                held[self._of(number)] = True
                affected |= new
                limit -= cost
        return held

    def smallest(self, limit: int) -> np.ndarray:
        """(ids,) bool: the ids of the set that affects the fewest rows, at most `limit`; the first of several such."""
        held, best, cost = self._none(), None, limit + 1
        for number in np.argsort(self._least, kind="stable").tolist():
            if self._least[number] >= cost:
                break
            own = sum(self.rows[other] for other in self._affected(number, held))
            if own < cost:
                best, cost = number, own
        if best is not None:
            held[self._of(best)] = True
        return held

    def _none(self) -> np.ndarray:
        return np.zeros(len(self._owner_starts) - 1, bool)

    def _of(self, number: int) -> np.ndarray:
        """The ids of a set."""
        return self._members[self._ends[number - 1] if number else 0 : self._ends[number]]

    def _affected(self, number: int, held: np.ndarray) -> set[int]:
        """The sets that have any of a set's ids that are not held out yet."""
        ids = self._of(number)
        return {
            other
            for i in ids[~held[ids]].tolist()
            for other in self._owners[self._owner_starts[i] : self._owner_starts[i + 1]].tolist()
        }

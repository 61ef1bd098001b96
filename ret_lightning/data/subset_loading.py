"""A subset ready to be evaluated: its queries and its candidate pool, read and checked."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice

import numpy as np

from ret_lightning.data.bad_rows import BadRow, OnBadRow, Tally, parsed_rows
from ret_lightning.data.layouts.base import Layout
from ret_lightning.data.rows import Passage, Place
from ret_lightning.data.types import EvaluationSubset, Split
from ret_lightning.errors import DataError

log = logging.getLogger(__name__)


def load_subset(
    layout: Layout,
    name: str,
    split: Split,
    queries_from: Split | None = None,
    instruction: str | None = None,
    limit: int | None = None,
    on_bad_row: OnBadRow = "raise",
    max_bad_fraction: float = 0.0,
) -> EvaluationSubset:
    """Reads and checks the queries and the pool of a subset.

    Args:
        layout: of the corpus.
        name: of the subset.
        split: what the result is called.
        queries_from: whose queries to take; None: those of `split`.
        instruction: of all queries, in place of their own; None: their own.
        limit: most queries that are taken, the first good ones; None: all. The pool is always whole.
        on_bad_row: `raise`, or `skip`: bad rows, and passages whose id the pool has already, are left out, and a
            warning a file tells how many and where the first is.
        max_bad_fraction: most that are left out of one file, as a share of its rows.

    Raises:
        DataError: naming file, line and field of the first problem; or if more than `max_bad_fraction` are skipped.
    """
    query_files, pool_files = layout.query_files(name, queries_from or split), layout.passage_files(name)
    tallies = [Tally(), Tally()] if on_bad_row == "skip" else [None, None]
    queries = list(islice(parsed_rows(query_files, layout.parser.parse_query, tallies[0]), limit))
    if instruction is not None:
        queries = [query.instructed(instruction) for query in queries]
    pool = _unique(parsed_rows(pool_files, layout.parser.parse_passage, tallies[1]), name, tallies[1])
    for tally, path in zip(tallies, (query_files, pool_files), strict=True):
        if tally and tally.bad:
            tally.check(max_bad_fraction, str(path))
            log.warning("%s: %s are left out; the first: %s", path, tally, next(iter(tally.first.values()))[0].message)
    if not queries or not pool:
        empty = query_files if not queries else pool_files
        raise DataError(
            f"{empty}: no rows that can be used; {name} needs at least one query and one passage",
            code="no-evaluation-rows",
            path=str(empty),
            subset=name,
        )
    return EvaluationSubset(name, split, queries, pool, source=queries_from or split)


def twice(passage: Passage, first: Place, subset: str) -> DataError:
    """The error of a passage whose id the pool has already, at `first`."""
    return DataError(
        f"{passage.place}: passage_id {passage.passage_id!r} is in the pool of {subset} twice, first in line {first.line}; "
        "remove one of the two",
        "duplicate_id",
        code="duplicate-passage-id",
        passage_id=passage.passage_id,
        subset=subset,
        first_line=first.line,
    )


def _unique(passages: Iterable[Passage], subset: str, tally: Tally | None) -> list[Passage]:
    """The passages, of equal ids the first."""
    firsts: dict[str, Passage] = {}
    for passage in passages:
        first = firsts.setdefault(passage.passage_id, passage)
        if first is not passage:
            error = twice(passage, first.place, subset)
            if tally is None:
                raise error
            tally.add(BadRow.of(error, passage.place))
    return list(firsts.values())


def sample_pool(subset: EvaluationSubset, size: int, seed: int) -> EvaluationSubset:
    """The subset with a smaller pool: all positives of its queries, and others by chance up to `size`, in their order.

    Recall in a smaller pool is higher than in the whole one: for watching a run, not for reporting.

    Args:
        subset: with its whole pool.
        size: passages that stay; more, where the queries have more positives.
        seed: of the choice, which is the same every time.
    """
    wanted = {passage_id for query in subset.queries for passage_id in query.passage_ids}
    positive = np.array([passage.passage_id in wanted for passage in subset.pool])
    others = np.flatnonzero(~positive)
    count = min(len(others), max(0, size - int(positive.sum())))
    kept = positive.copy()
    kept[np.random.default_rng((seed, len(others))).choice(others, count, replace=False)] = True
    return replace(subset, pool=[subset.pool[row] for row in np.flatnonzero(kept)])

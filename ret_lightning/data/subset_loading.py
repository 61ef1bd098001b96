"""Loading of evaluation subsets: the queries and the candidate pool of a subset, parsed and checked."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np

from ret_lightning.data.bad_rows import BadRow, OnBadRow, Tally, parse_rows
from ret_lightning.data.layouts.base import Layout
from ret_lightning.data.readers.fields import Content, row_error
from ret_lightning.data.readers.indexed_rows import IndexedRows
from ret_lightning.data.readers.row_files import suffix_of
from ret_lightning.data.readers.source_location import Location
from ret_lightning.data.rows import Passage, Query
from ret_lightning.data.sampling.holdout import Holdout
from ret_lightning.data.types import EvaluationSubset, Split
from ret_lightning.errors import ConfigError, DataError

log = logging.getLogger(__name__)


def choose_subsets(layout: Layout, names: Sequence[str] | None) -> list[str]:
    """Return the names of the subsets to evaluate.

    Args:
        layout: layout of the corpus.
        names: `data.subsets`; None: all subsets that have test queries.

    Raises:
        ConfigError: if `names` is empty.
        DataError: if a subset of `names` has no test queries although others have, or if `names` is None and no subset has.
    """
    found = layout.subsets()
    if names is None:
        if not found:
            first = layout.evaluated_subsets[:1] or layout.pools()[:1] or ["any"]
            layout.query_files(first[0], "test")  # raises an error that contains the expected path
        return found
    if not names:
        message = "data.subsets is empty; list at least one subset, or set it to null for all"
        raise ConfigError(message, code="no-subset-named", key="data.subsets")
    for name in names:
        if found and name not in found:
            raise DataError(
                f"data.subsets: {layout.root} has no test queries of subset {name}; choices: {', '.join(found)}",
                code="subset-without-test-file",
                subset=name,
                allowed=tuple(found),
            )
    return list(names)


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
    """Read and check the queries and the candidate pool of a subset.

    Args:
        layout: layout of the corpus.
        name: name of the subset.
        split: split of the result, `val` or `test`.
        queries_from: split whose query files are read; None: `split`.
        instruction: instruction that replaces those of the queries; None: keep them.
        limit: maximum number of queries, the first ones that are not bad; None: all. The pool is always complete.
        on_bad_row: `raise` an error, or `skip` bad rows and passages with a repeated id, with a warning per file.
        max_bad_fraction: maximum share of skipped rows of a file, in [0, 1].

    Raises:
        DataError: if a file is missing, a row is bad, more than `max_bad_fraction` of a file is skipped, or no row is left.
    """
    query_files, pool_files = layout.query_files(name, queries_from or split), layout.passage_files(name)
    tallies = [Tally(), Tally()] if on_bad_row == "skip" else [None, None]
    queries = list(islice(parse_rows(query_files, layout.parser.parse_query, tallies[0]), limit))
    if instruction is not None:
        queries = [query.with_instruction(instruction) for query in queries]
    pool = _drop_duplicates(parse_rows(pool_files, layout.parser.parse_passage, tallies[1]), name, tallies[1])
    for tally, path in zip(tallies, (query_files, pool_files), strict=True):
        if tally and tally.bad:
            tally.check(max_bad_fraction, str(path))
            log.warning("%s: skipped %s; the first: %s", path, tally, next(iter(tally.first.values()))[0].message)
    if not queries or not pool:
        empty = query_files if not queries else pool_files
        raise DataError(
            f"{empty}: no usable rows; subset {name} needs at least one query and one passage",
            code="no-evaluation-rows",
            path=str(empty),
            subset=name,
        )
    return EvaluationSubset(name, split, queries, pool, source=queries_from or split)


def _drop_duplicates(passages: Iterable[Passage], subset: str, tally: Tally | None) -> list[Passage]:
    """Return the first passage of each id; a repeated id is an error, or is counted if there is a tally."""
    firsts: dict[str, Passage] = {}
    for passage in passages:
        first = firsts.setdefault(passage.passage_id, passage)
        if first is not passage:
            line = first.location.line
            message = (
                f"passage_id {passage.passage_id!r} is in the pool of {subset} twice, first in line {line}; "
                "remove one of the two"
            )
            error = row_error(
                passage.location,
                message,
                "duplicate_id",
                code="duplicate-passage-id",
                passage_id=passage.passage_id,
                subset=subset,
                first_line=line,
            )
            if tally is None:
                raise error
            tally.add(BadRow.of(error, passage.location))
    return list(firsts.values())


def sample_pool(subset: EvaluationSubset, size: int, seed: int) -> EvaluationSubset:
    """Return the subset with a smaller candidate pool, which contains all positives and a random sample of the others.

    The order of the pool is kept. Recall in a smaller pool is higher than in the whole pool, so it is for monitoring only.

    Args:
        subset: subset with its whole candidate pool.
        size: number of passages to keep; more are kept if there are more positives.
        seed: seed of the sample.
    """
    positives = {passage_id for query in subset.queries for passage_id in query.passage_ids}
    is_positive = np.array([passage.passage_id in positives for passage in subset.pool])
    others = np.flatnonzero(~is_positive)
    count = min(len(others), max(0, size - int(is_positive.sum())))
    is_kept = is_positive.copy()
    is_kept[np.random.default_rng((seed, len(others))).choice(others, count, replace=False)] = True
    return replace(subset, pool=[subset.pool[row] for row in np.flatnonzero(is_kept)])


def load_holdout_subset(
    holdout: Holdout, name: str, instruction: str | None = None, limit: int | None = None, is_indexed: bool = False
) -> EvaluationSubset:
    """Read the held-out rows of a subset as queries, and their candidate pool of training passages, in file order.

    Args:
        holdout: the held-out rows of the corpus.
        name: name of the subset, which must have held-out rows.
        instruction: instruction that replaces those of the queries; None: keep them.
        limit: maximum number of queries, the first ones; None: all. The pool is always complete.
        is_indexed: whether rows of compressed and Parquet files are read from the Arrow copy.

    Raises:
        DataError: if a file cannot be read.
    """
    found = holdout.subsets[name]
    held_out = found.held_out.tolist()
    rows = sorted({*held_out, *found.passages.tolist()})
    pairs = dict(
        zip(rows, (holdout.parser.parse_pair(*row) for row in _read_rows(holdout, rows, is_indexed)), strict=True)
    )
    # A file may repeat rows to weight them; each distinct row is one query.
    distinct: dict[Query, Query] = {}
    for row in held_out:
        query = pairs[row].query
        distinct.setdefault(replace(query, location=None), query)
    queries = list(distinct.values())[:limit]
    if instruction is not None:
        queries = [query.with_instruction(instruction) for query in queries]
    pool = [pairs[row].passage for row in found.passages.tolist()]
    return EvaluationSubset(name, "val", queries, pool, source="holdout")


def _read_rows(holdout: Holdout, rows: Sequence[int], is_indexed: bool) -> Iterator[tuple[Content, Location]]:
    files = holdout.files
    if is_indexed and any(suffix_of(path) != ".jsonl" for path in files.paths):
        copy = IndexedRows(files)
        yield from (copy[row] for row in rows)
        return
    positions: dict[int, list[int]] = {}
    for row in rows:
        file, position = holdout.locations[row]
        positions.setdefault(file, []).append(position)
    for file, own in positions.items():
        yield from (files[row] for row in files.at(file, own))

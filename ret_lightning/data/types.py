"""Shared types of the data package: evaluation subset, split, and source of the queries."""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from ret_lightning.data.readers.source_location import resolve_lines
from ret_lightning.data.rows import Passage, Query
from ret_lightning.inputs.items import PLURAL, Side

__all__ = [
    "PLURAL",
    "SIDES",
    "EvaluationSubset",
    "Side",
    "Source",
    "Split",
    "distinct_ids",
    "find_unreachable",
    "warn_unreachable",
]

log = logging.getLogger(__name__)

Split = Literal["val", "test"]
SIDES: tuple[Side, ...] = ("passage", "query")  # in the order of encoding
Source = Literal["val", "holdout", "test"]  # of queries: <subset>_val files, held-out training rows, test files


@dataclass(frozen=True)
class EvaluationSubset:
    """The queries and the candidate pool of one subset of one split.

    Attributes:
        name: name of the subset.
        split: `val` or `test`.
        queries: the queries, in file order.
        pool: the candidate passages, in file order, with unique ids.
        source: source of the queries.
    """

    name: str
    split: Split
    queries: list[Query]
    pool: list[Passage]
    source: Source = "test"

    @cached_property
    def unreachable(self) -> list[int]:
        """Positions of the queries without a positive in the candidate pool, which count as misses."""
        pool = {passage.passage_id for passage in self.pool}
        return find_unreachable([query.passage_ids for query in self.queries], pool)

    def rows(self, side: Side) -> list[Query] | list[Passage]:
        """Return the candidate pool for `passage`, the queries for `query`."""
        return self.pool if side == "passage" else self.queries


def find_unreachable(positives: Iterable[Sequence[str]], pool_ids: Container[str]) -> list[int]:
    """Return the positions of the queries without a positive in the candidate pool.

    Args:
        positives: the ids of the positives of each query.
        pool_ids: the ids of the candidate pool.
    """
    return [i for i, ids in enumerate(positives) if not any(passage_id in pool_ids for passage_id in ids)]


def warn_unreachable(subset: EvaluationSubset) -> None:
    """Log a warning if queries have no positive in the candidate pool."""
    if not subset.unreachable:
        return
    missing, queries = len(subset.unreachable), len(subset.queries)
    first = subset.queries[subset.unreachable[0]]
    log.warning(
        "%s/%s: %d of %d queries have no positive in the candidate pool and count as misses; the first is data_id %s at %s%s",
        subset.split, subset.name, missing, queries, first.data_id, first.location,
        "; check that queries and passages use the same ids" if missing == queries else "",
    )  # fmt: skip


def distinct_ids(queries: Sequence[Query]) -> list[str]:
    """Return a distinct id for each query, as TREC files require.

    Args:
        queries: queries, whose data_ids may repeat.

    Returns:
        The data_id of each query. A data_id that occurred before gets the suffix `#line` and the line of the query.
    """
    first: set[str] = set()
    repeated = []
    for i, query in enumerate(queries):
        if query.data_id in first:
            repeated.append(i)
        first.add(query.data_id)
    # Resolved together, so that each file is read once.
    locations = dict(zip(repeated, resolve_lines([queries[i].location for i in repeated]), strict=True))
    seen: set[str] = set()
    ids = []
    for i, query in enumerate(queries):
        name = query.data_id
        while name in seen:  # repeats if several files have the same data_id in the same line
            name += f"#line{locations.get(i, query.location).line}"
        ids.append(name)
        seen.add(name)
    return ids

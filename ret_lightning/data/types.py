"""Types that the parts of the data share: an evaluation subset, its split, and the source of its queries."""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from ret_lightning.data.readers.source_location import numbered
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
    "unreachable_queries",
    "warn_unreachable",
]

log = logging.getLogger(__name__)

Split = Literal["val", "test"]
SIDES: tuple[Side, ...] = ("passage", "query")  # in the order in which an evaluation encodes them
Source = Literal["val", "holdout", "test"]  # of queries: <subset>_val files, held-out training rows, test files


@dataclass(frozen=True)
class EvaluationSubset:
    """One subset of one split: what is asked and the pool that is searched.

    Attributes:
        name: of the subset.
        split: `val` or `test`.
        queries: in the order of the file.
        pool: the passages, in the order of the file, ids unique.
        source: where the queries come from.
    """

    name: str
    split: Split
    queries: list[Query]
    pool: list[Passage]
    source: Source = "test"

    @cached_property
    def unreachable(self) -> list[int]:
        """Positions of the queries none of whose positives is in the pool; they count as misses."""
        pool = {passage.passage_id for passage in self.pool}
        return unreachable_queries([query.passage_ids for query in self.queries], pool)

    def rows(self, side: Side) -> list[Query] | list[Passage]:
        """The rows of a side: the pool, or the queries."""
        return self.pool if side == "passage" else self.queries


def unreachable_queries(positives: Iterable[Sequence[str]], pool_ids: Container[str]) -> list[int]:
    """Positions of the queries none of whose positives is in the pool."""
    return [i for i, ids in enumerate(positives) if not any(passage_id in pool_ids for passage_id in ids)]


def warn_unreachable(subset: EvaluationSubset) -> None:
    """Warns of queries none of whose positives is in the pool."""
    if not subset.unreachable:
        return
    missing, queries = len(subset.unreachable), len(subset.queries)
    first = subset.queries[subset.unreachable[0]]
    log.warning(
        "%s/%s: %d of %d queries have none of their passages in the pool and count as misses; the first: data_id %s at %s%s",
        subset.split, subset.name, missing, queries, first.data_id, first.place,
        "; do the ids of queries and passages match?" if missing == queries else "",
    )  # fmt: skip


def distinct_ids(queries: Sequence[Query]) -> list[str]:
    """The data_id of each query; one that occurred before carries its line, since TREC files need distinct ids."""
    first: set[str] = set()
    repeated = [i for i, query in enumerate(queries) if query.data_id in first or first.add(query.data_id)]
    # Numbered together: the line of a row that was read by its byte is counted from the beginning of its file.
    places = dict(zip(repeated, numbered([queries[i].place for i in repeated]), strict=True))
    seen: set[str] = set()
    ids = []
    for i, query in enumerate(queries):
        name = query.data_id
        while name in seen:  # more than once where several files have the same data_id in the same line
            name += f"#line{places.get(i, query.place).line}"
        ids.append(name)
        seen.add(name)
    return ids

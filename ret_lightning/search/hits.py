"""The result of a search."""

from __future__ import annotations

from typing import NamedTuple


class Hit(NamedTuple):
    """A passage found by a search.

    Attributes:
        rank: rank, from 1.
        score: MaxSim score, in [-k, k].
        passage_id: id of the passage.
        text: text of the passage; None if it has none.
        image_path: image path as in the row of the passage; None if it has none.
    """

    rank: int
    score: float
    passage_id: str
    text: str | None
    image_path: str | None

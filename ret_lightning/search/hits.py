"""What a search gives."""

from __future__ import annotations

from typing import NamedTuple


class Hit(NamedTuple):
    """A passage that was found.

    Attributes:
        rank: from 1.
        score: MaxSim, in [-k, k].
        passage_id: its id.
        text: None where it has none.
        image_path: as its row has it; None where it has none.
    """

    rank: int
    score: float
    passage_id: str
    text: str | None
    image_path: str | None

"""Example queries as they are displayed: a query, its gold passage, and what was retrieved."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True)
class ExampleItem:
    """A query or a passage to look at.

    Attributes:
        text: what it says, perhaps nothing.
        image: in RGB; None where it has none, or it cannot be read.
        right: whether it is one of the query's positives; None for a query.
    """

    text: str
    image: Image.Image | None
    right: bool | None = None


@dataclass(frozen=True)
class Example:
    """A query and what was retrieved for it.

    Attributes:
        subset: its name.
        data_id: the query's.
        query: itself.
        gold: its first positive in the pool; None where the pool has none.
        ranked: the best passages, best first.
    """

    subset: str
    data_id: str
    query: ExampleItem
    gold: ExampleItem | None
    ranked: list[ExampleItem]

"""Data classes of example queries and their retrieved passages."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True)
class ExampleItem:
    """A query or passage of an example.

    Attributes:
        text: its text, possibly empty.
        image: its RGB image; None if it has no image or the image cannot be read.
        is_positive: whether the passage is a positive of the query; None for a query.
    """

    text: str
    image: Image.Image | None
    is_positive: bool | None = None


@dataclass(frozen=True)
class Example:
    """A query with its retrieved passages.

    Attributes:
        subset: name of the subset.
        data_id: id of the query.
        query: the query.
        gold: the first positive of the query in the candidate pool; None if the pool contains none.
        ranked: the top-ranked passages, best first.
    """

    subset: str
    data_id: str
    query: ExampleItem
    gold: ExampleItem | None
    ranked: list[ExampleItem]

"""Classes that a checkpoint names: found among those that are imported, so that nothing is imported from a name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")


def subclasses(parent: type[T]) -> Iterator[type[T]]:
    """Every class below one, at any depth."""
    for child in parent.__subclasses__():
        yield child
        yield from subclasses(child)

"""Rows that cannot be used: left out and counted by kind, until there are too many of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeVar

from ret_lightning.data.readers.source_location import BytePlace, Place
from ret_lightning.errors import DataError

T = TypeVar("T")

OnBadRow = Literal["raise", "skip"]
SHOWN = 5  # bad rows of a kind that are told one by one
# Rows of a stream of unknown length that must be seen before a share of them means something: at a limit of 1 %, a corpus
# with 0.5 % of bad rows is stopped by chance once in about a hundred runs, and with 100 rows it would be once in ten.
JUDGED_FROM = 1000


class UntoldPlace:
    """Stands for a row's place in the message of an error, until somebody reads the message.

    The line of a row that was read from the middle of a file is found by counting (`BytePlace`), which is too much for each
    of many bad rows of which a few are shown.
    """

    mark = "\0place\0"

    def __init__(self, place: Place | BytePlace) -> None:
        self.place = place

    def __str__(self) -> str:
        return self.mark


class BadRow(NamedTuple):
    """What is wrong with a row.

    Attributes:
        kind: of the `DataError`.
        text: its message without the code, perhaps with `UntoldPlace.mark` for the place.
        place: of the row.
    """

    kind: str
    text: str
    place: Place | BytePlace

    @property
    def message(self) -> str:
        """With file and line."""
        return self.text.replace(UntoldPlace.mark, str(self.place)) if UntoldPlace.mark in self.text else self.text

    @classmethod
    def of(cls, error: DataError, place: Place | BytePlace) -> BadRow:
        """From the error that reading it raised."""
        return cls(error.kind, error.message, place)


@dataclass
class Tally:
    """Rows and bad rows of them, counted.

    Attributes:
        rows: seen, good and bad ones.
        kinds: bad ones by kind.
        first: the first few of each kind, each row once, though it may come again in another epoch.
    """

    rows: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    first: dict[str, list[BadRow]] = field(default_factory=dict)

    @property
    def bad(self) -> int:
        """How many rows are bad."""
        return self.kinds.total()

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.kinds.items()))
        return f"{self.bad} of {self.rows} rows ({kinds})" if kinds else f"0 of {self.rows} rows"

    def add(self, row: BadRow) -> None:
        """Counts a bad row, apart from `rows`."""
        self.kinds[row.kind] += 1
        first = self.first.setdefault(row.kind, [])
        if len(first) < SHOWN and row not in first:
            first.append(row)

    def update(self, other: Tally) -> list[BadRow]:
        """Adds what came later; gives those that are now among the first few of their kind."""
        self.rows += other.rows
        new = []
        for kind, count in other.kinds.items():
            first = self.first.setdefault(kind, [])
            shown = [row for row in other.first.get(kind, []) if row not in first][: SHOWN - len(first)]
            first += shown
            new += shown
            self.kinds[kind] += count
        return new

    def check(self, most: float, what: str) -> None:
        """Raises DataError where more than a share `most` of the rows is bad; `what` begins the message."""
        if self.bad > most * self.rows:
            row = next(iter(self.first.values()))[0]
            raise DataError(
                f"{what}: {self} are bad, more than data.max_bad_fraction={most:g}; the first: {row.message}; "
                "ret-check lists what is wrong",
                "too_many_bad",
                code="too-many-bad-rows",
                found=self.bad,
                rows=self.rows,
                allowed=most,
            )


def parsed_rows(
    rows: Iterable[tuple[object, Place | BytePlace]],
    parse: Callable[..., T],
    tally: Tally | None,
) -> Iterator[T]:
    """Rows, parsed.

    Args:
        rows: content and place of each.
        parse: makes something of these two.
        tally: counts the rows, and the bad ones, which are left out; None: a bad one raises its DataError. What the files
            themselves raise (one that cannot be decompressed to its end, say) is raised in any case.
    """
    for content, place in rows:
        try:
            row = parse(content, place)
        except DataError as error:
            if tally is None:
                raise
            tally.rows += 1
            tally.add(BadRow.of(error, place))
            continue
        if tally is not None:
            tally.rows += 1
        yield row

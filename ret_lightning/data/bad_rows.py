"""Bad rows: skipped and counted by kind, up to a maximum fraction of all rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeVar

from ret_lightning.data.readers.source_location import Location
from ret_lightning.errors import DataError

T = TypeVar("T")

OnBadRow = Literal["raise", "skip"]
MAX_REPORTED = 5  # bad rows of each kind that are reported one by one
# Minimum sample of a stream of unknown length. At a limit of 1 %, a corpus with 0.5 % of bad rows exceeds the limit by chance
# in about one of a hundred runs; with a sample of 100 rows it would be one of ten.
MIN_ROWS_FOR_FRACTION = 1000


class DeferredLocation:
    """A placeholder for the source location in an error message, replaced when the message is read.

    Counting the lines of a `ByteLocation` reads the file. Of many bad rows only a few are reported, so the lines of the others
    are never counted.

    Args:
        location: source location of the row.
    """

    mark = "\0location\0"

    def __init__(self, location: Location) -> None:
        self.location = location

    def __str__(self) -> str:
        return self.mark


class BadRow(NamedTuple):
    """A row that cannot be used, and why.

    Attributes:
        kind: `DataError.kind` of the error.
        text: message without the code; may contain `DeferredLocation.mark` for the source location.
        location: source location of the row.
    """

    kind: str
    text: str
    location: Location

    @property
    def message(self) -> str:
        """The message with the source location."""
        return (
            self.text.replace(DeferredLocation.mark, str(self.location))
            if DeferredLocation.mark in self.text
            else self.text
        )

    @classmethod
    def of(cls, error: DataError, location: Location) -> BadRow:
        """Build a bad row from the error that was raised when it was read.

        Args:
            error: the error.
            location: source location of the row.
        """
        return cls(error.kind, error.message, location)


@dataclass
class Tally:
    """Counts of rows and of bad rows.

    Attributes:
        rows: number of rows read, good and bad.
        kinds: number of bad rows of each kind.
        first: the first `MAX_REPORTED` bad rows of each kind, without duplicates.
    """

    rows: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    first: dict[str, list[BadRow]] = field(default_factory=dict)

    @property
    def bad(self) -> int:
        """Number of bad rows."""
        return self.kinds.total()

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.kinds.items()))
        return f"{self.bad} of {self.rows} rows ({kinds})" if kinds else f"0 of {self.rows} rows"

    def add(self, row: BadRow) -> None:
        """Count a bad row; `rows` is unchanged."""
        self.kinds[row.kind] += 1
        first = self.first.setdefault(row.kind, [])
        if len(first) < MAX_REPORTED and row not in first:
            first.append(row)

    def update(self, other: Tally) -> list[BadRow]:
        """Add the counts of later rows.

        Args:
            other: counts of later rows.

        Returns:
            The bad rows that were added to `first`.
        """
        self.rows += other.rows
        new = []
        for kind, count in other.kinds.items():
            first = self.first.setdefault(kind, [])
            added = [row for row in other.first.get(kind, []) if row not in first][: MAX_REPORTED - len(first)]
            first += added
            new += added
            self.kinds[kind] += count
        return new

    def check(self, max_fraction: float, name: str) -> None:
        """Raise an error if too many rows are bad.

        Args:
            max_fraction: largest allowed fraction of bad rows, in [0, 1].
            name: what was read, for the error message.

        Raises:
            DataError: if more than `max_fraction` of the rows are bad.
        """
        if self.bad > max_fraction * self.rows:
            row = next(iter(self.first.values()))[0]
            raise DataError(
                f"{name}: {self} are bad, more than data.max_bad_fraction={max_fraction:g}; the first is {row.message}; "
                "run ret-check to list all problems",
                "too_many_bad",
                code="too-many-bad-rows",
                part=name,
                found=self.bad,
                rows=self.rows,
                allowed=max_fraction,
            )


def parse_rows(
    rows: Iterable[tuple[object, Location]],
    parse: Callable[..., T],
    tally: Tally | None,
) -> Iterator[T]:
    """Parse rows, and skip and count bad ones.

    Args:
        rows: content and source location of each row.
        parse: called with the content and the location of a row.
        tally: counts the rows and the bad rows, which are skipped; None: the error of a bad row is raised. Errors of a file,
            for example in its compression, are raised in both cases.

    Yields:
        The parsed rows.

    Raises:
        DataError: if a file cannot be read, or if a row is bad and `tally` is None.
    """
    for content, location in rows:
        try:
            row = parse(content, location)
        except DataError as error:
            if tally is None:
                raise
            tally.rows += 1
            tally.add(BadRow.of(error, location))
            continue
        if tally is not None:
            tally.rows += 1
        yield row

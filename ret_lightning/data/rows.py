"""One row of a file, parsed and checked: the only module that knows the field names of ReT-M2KR.

Absent fields and NaN count as null, unknown fields are ignored, ids may be strings or numbers. A row is a line of JSON Lines
or a row of a parquet file; both pass the same checks.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ret_lightning.data.readers.fields import Content, RowFields, fields_of
from ret_lightning.data.readers.source_location import BytePlace, Place
from ret_lightning.errors import DataError

__all__ = [
    "CONTENT",
    "M2KR_ROWS",
    "BytePlace",
    "Content",
    "ExtraColumns",
    "Passage",
    "Place",
    "Query",
    "RowParser",
    "TrainingPair",
    "content_digest",
    "parse_pair",
    "parse_passage",
    "parse_query",
]


CONTENT = "texts and images"  # name of `content_digest` in the config of a store

_NO_PLACE = Place(Path("<python>"), 0)  # of rows that come from no file


@dataclass(frozen=True)
class Query:
    """A query row.

    Attributes:
        data_id: as a string.
        instruction: None where the row has none.
        question: None where the row has none.
        image_path: relative to the image folder; None where the row names no file.
        image_bytes: an encoded image that the row itself holds; only where there is no `image_path`.
        passage_ids: the positives, as strings; at least one, unless the row was read without them.
        answers: for pseudo recall; empty where the row has none.
        subset: the row's `subset` field; None where the row has none.
        place: of the row, for messages.
    """

    data_id: str
    instruction: str | None = None
    question: str | None = None
    image_path: str | None = None
    image_bytes: bytes | None = dataclasses.field(default=None, repr=False)
    passage_ids: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    subset: str | None = None
    place: Place | BytePlace = _NO_PLACE

    @property
    def text(self) -> str | None:
        """Instruction and question, joined by a space; None where the row has neither."""
        return " ".join(part for part in (self.instruction, self.question) if part is not None) or None

    @property
    def image(self) -> str | bytes | None:
        """The path, or else the encoded image itself; None where the row has no image."""
        return self.image_path or self.image_bytes

    def instructed(self, instruction: str) -> Query:
        """The same query with another instruction."""
        return dataclasses.replace(self, instruction=instruction)


@dataclass(frozen=True)
class Passage:
    """A passage row; text, image path and image bytes are None where it has none."""

    passage_id: str
    text: str | None = None
    image_path: str | None = None
    image_bytes: bytes | None = dataclasses.field(default=None, repr=False)
    place: Place | BytePlace = _NO_PLACE

    @property
    def image(self) -> str | bytes | None:
        """The path, or else the encoded image itself; None where the row has no image."""
        return self.image_path or self.image_bytes


@dataclass(frozen=True)
class ExtraColumns:
    """The names of fields of a training row that are read for the loss.

    Attributes:
        row: each a number or a list of numbers that belongs to the row, a weight for example.
        passage: each a number per passage, a teacher's score for example: either the row's field is the positive's number, and
            each object of `negative_passages` has one of its own, or the row's field is a list of all of them, the positive's
            first.
    """

    row: tuple[str, ...] = ()
    passage: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainingPair:
    """A training row: a query with one positive passage, and the negatives that the row names, mostly none.

    Attributes:
        query: of the row.
        passage: the positive.
        negatives: of the row.
        columns: by name, the row's `ExtraColumns.row`; NaN for null.
        passage_columns: by name, the row's `ExtraColumns.passage`: of the positive and each of the negatives; NaN for null.
    """

    query: Query
    passage: Passage
    negatives: tuple[Passage, ...] = ()
    columns: Mapping[str, float | tuple[float, ...]] = dataclasses.field(default_factory=dict)
    passage_columns: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)


class RowParser:
    """Reads rows by the field names of ReT-M2KR. A layout whose rows have other fields overrides `fields`.

    Two parsers of one class are the same; a subclass with settings of its own adds them to `identity`.
    """

    @property
    def identity(self) -> tuple[str, ...]:
        """Texts that say how rows are read: caches of what was read are kept apart by them. Empty for ReT-M2KR's fields."""
        own = type(self)
        return () if own is RowParser else (f"{own.__module__}.{own.__qualname__}",)

    def fields(self, content: Content, place: Place | BytePlace) -> RowFields:
        """Parse a row into fields by ReT-M2KR's names.

        Args:
            content: the row; NaN counts as null.
            place: of the row, for messages.

        Raises:
            DataError: if the row is not a JSON object.
        """
        return fields_of(content, place)

    def query(self, row: RowFields, judged: bool = True) -> Query:
        """Read a query: a row of a test, validation or training file, or of a file of queries to answer.

        Args:
            row: its fields.
            judged: whether it must name its positives; False leaves them unread.

        Raises:
            DataError: with file, line and field, if a field is missing or of a wrong type.
        """
        path, encoded = row.image("image_path", "image")
        query = Query(
            data_id=row.identifier("data_id"),
            instruction=row.text("instruction"),
            question=row.text("question"),
            image_path=path,
            image_bytes=encoded,
            passage_ids=row.identifiers("passage_id") if judged else (),
            answers=row.answers("answer"),
            subset=row.text("subset"),
            place=row.place,
        )
        if query.text is None and query.image is None:
            message = "an empty query: it has neither instruction, question nor image_path"
            raise row.error(message, "empty_row", code="empty-query")
        return query

    def passage(self, row: RowFields) -> Passage:
        """Read a passage, a row of a passage file; raises as `query` does."""
        path, encoded = row.image("passage_image_path", "passage_image")
        return Passage(row.identifier("passage_id"), row.text("passage_text"), path, encoded, row.place)

    def pair(self, row: RowFields, extra: ExtraColumns | None = None) -> TrainingPair:
        """Read a row of a training file: a query, its positive and its negatives; raises as `query` does."""
        query = self.query(row)
        text = row.text("passage_text")
        path, encoded = row.image("passage_image_path", "passage_image")
        if text is None and path is None and encoded is None:
            message = "an empty passage: the row has neither passage_text nor passage_image_path"
            raise row.error(message, "empty_row", code="empty-passage")
        passage = Passage(query.passage_ids[0], text, path, encoded, row.place)
        negatives = [(number, value) for number, value in enumerate(_listed_negatives(row)) if value is not None]
        return TrainingPair(
            query,
            passage,
            tuple(self._negative(row, *each) for each in negatives),
            {name: row.numbers(name) for name in extra.row} if extra else {},
            {name: _by_passage(row, name, negatives) for name in extra.passage} if extra else {},
        )

    def subset(self, row: RowFields) -> tuple[str | None, str]:
        """Read the fields that decide the subset of a row: `subset`, None where it is missing, and `data_id`."""
        subset, data_id = row.values.get("subset"), row.values.get("data_id")
        return (
            (subset.strip() or None) if isinstance(subset, str) else None,
            data_id.strip() if isinstance(data_id, str) else "",
        )

    def parse_query(self, content: Content, place: Place | BytePlace, judged: bool = True) -> Query:
        """Parse a query; see `fields` and `query`."""
        return self.query(self.fields(content, place), judged)

    def parse_passage(self, content: Content, place: Place | BytePlace) -> Passage:
        """Parse a passage; see `fields` and `passage`."""
        return self.passage(self.fields(content, place))

    def parse_pair(self, content: Content, place: Place | BytePlace, extra: ExtraColumns | None = None) -> TrainingPair:
        """Parse a row of a training file; see `fields` and `pair`."""
        return self.pair(self.fields(content, place), extra)

    def parse_subset(self, content: Content) -> tuple[str | None, str]:
        """Parse what decides the subset of a row; (None, "") of one that cannot be parsed."""
        try:
            return self.subset(self.fields(content, _NO_PLACE))
        except DataError:
            return None, ""

    def _negative(self, row: RowFields, number: int, value: Any) -> Passage:
        key = f"negative_passages[{number}]"
        if not isinstance(value, dict):
            raise row.wrong(key, "an object with passage_id and passage_text", value)
        negative = self.passage(RowFields(value, row.place))
        if negative.text is None and negative.image is None:
            message = f"field {key} is an empty passage: it has neither passage_text nor passage_image_path"
            raise row.error(message, "empty_row", code="empty-negative", key=key)
        return negative


# Of ReT-M2KR's own fields.
M2KR_ROWS = RowParser()
parse_query, parse_passage, parse_pair = M2KR_ROWS.parse_query, M2KR_ROWS.parse_passage, M2KR_ROWS.parse_pair


def content_digest(rows: Sequence[Passage] | Sequence[Query]) -> str:
    """Hash all texts, and the paths or bytes of all images; image files are not read."""
    digest = hashlib.blake2b(digest_size=8)
    for row in rows:
        digest.update(_content(row))
    return digest.hexdigest()


def row_digests(rows: Sequence[Passage] | Sequence[Query]) -> np.ndarray:
    """Hash each row as `content_digest` hashes all of them: (rows,) uint64."""
    digests = [hashlib.blake2b(_content(row), digest_size=8).digest() for row in rows]
    return np.array([int.from_bytes(digest, "little") for digest in digests], dtype=np.uint64)


def _content(row: Passage | Query) -> bytes:
    image = hashlib.blake2b(row.image).hexdigest() if isinstance(row.image, bytes) else row.image
    return json.dumps([row.text, image]).encode()


def _listed_negatives(row: RowFields) -> list[Any]:
    """Read `negative_passages`, our extension: a list of objects with the fields of a passage row; null stands for none."""
    values = row.values.get("negative_passages") or []
    if not isinstance(values, list):
        raise row.wrong("negative_passages", "a list of passages or null", values)
    return values


def _by_passage(row: RowFields, name: str, negatives: Sequence[tuple[int, dict[str, Any]]]) -> tuple[float, ...]:
    """Read a column of passages: the positive's number and each negative's; `negatives` with their position in the row."""
    value = row.numbers(name)
    if not isinstance(value, tuple):
        return (value, *(_number_of_negative(row, name, *each) for each in negatives))
    listed = 1 + len(_listed_negatives(row))
    if len(value) != listed:
        message = f"field {name} has {len(value)} numbers for {listed} passages: one for the positive and each negative"
        raise row.error(
            message, "wrong_type", code="passage-column-length", key=name, found=len(value), expected=listed
        )
    return (value[0], *(value[1 + number] for number, _ in negatives))


def _number_of_negative(row: RowFields, name: str, number: int, value: dict[str, Any]) -> float:
    found = RowFields(value, row.place).numbers(name)
    if isinstance(found, tuple):
        raise row.wrong(f"negative_passages[{number}].{name}", "a number or null", value[name])
    return found

"""Queries, passages and training pairs, and their parser. No other module uses the field names of ReT-M2KR.

Absent fields and NaN are read as null, unknown fields are ignored, and ids may be strings or integers. Lines of JSON Lines and
rows of parquet files pass the same checks.
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

from ret_lightning.data.readers.fields import Content, RowFields, parse_fields
from ret_lightning.data.readers.source_location import Location, SourceLocation
from ret_lightning.errors import DataError

__all__ = [
    "CONTENT",
    "M2KR_ROWS",
    "Content",
    "ExtraColumns",
    "Passage",
    "Query",
    "RowParser",
    "TrainingPair",
    "hash_content",
    "hash_rows",
    "parse_pair",
    "parse_passage",
    "parse_query",
]


CONTENT = "texts and images"  # key of `hash_content` in the config of a store

_NO_LOCATION = SourceLocation(Path("<python>"), 0)  # of rows built in Python


@dataclass(frozen=True)
class Query:
    """A query.

    Attributes:
        data_id: id of the query.
        instruction: instruction, or None.
        question: question, or None.
        image_path: path of the image relative to the image folder, or None.
        image_bytes: encoded image that is stored in the row, or None; always None if there is an `image_path`.
        passage_ids: ids of the positives; empty only if the row was read without them.
        answers: answers for pseudo recall; may be empty.
        subset: the row's field `subset`, or None.
        location: source location of the row, for error messages.
    """

    data_id: str
    instruction: str | None = None
    question: str | None = None
    image_path: str | None = None
    image_bytes: bytes | None = dataclasses.field(default=None, repr=False)
    passage_ids: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    subset: str | None = None
    location: Location = _NO_LOCATION

    @property
    def text(self) -> str | None:
        """Instruction and question, joined by a space; None if the query has neither."""
        return " ".join(part for part in (self.instruction, self.question) if part is not None) or None

    @property
    def image(self) -> str | bytes | None:
        """The image path, or the encoded image; None if there is no image."""
        return self.image_path or self.image_bytes or None

    def with_instruction(self, instruction: str) -> Query:
        """Return the query with another instruction."""
        return dataclasses.replace(self, instruction=instruction)


@dataclass(frozen=True)
class Passage:
    """A passage.

    Attributes:
        passage_id: id of the passage.
        text: text, or None.
        image_path: path of the image relative to the image folder, or None.
        image_bytes: encoded image that is stored in the row, or None; always None if there is an `image_path`.
        location: source location of the row, for error messages.
    """

    passage_id: str
    text: str | None = None
    image_path: str | None = None
    image_bytes: bytes | None = dataclasses.field(default=None, repr=False)
    location: Location = _NO_LOCATION

    @property
    def image(self) -> str | bytes | None:
        """The image path, or the encoded image; None if there is no image."""
        return self.image_path or self.image_bytes or None


@dataclass(frozen=True)
class ExtraColumns:
    """Names of the fields of training rows that are passed to the loss.

    Attributes:
        row: fields with a number or a list of numbers per row, for example a weight.
        passage: fields with a number per passage, for example a teacher's score. Either the field of the row is the number of
            the positive, and each object of `negative_passages` has a field of the same name, or the field of the row is a
            list of the numbers of all passages, beginning with the positive.
    """

    row: tuple[str, ...] = ()
    passage: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainingPair:
    """A training row: a query, one positive passage and optional negatives.

    Attributes:
        query: the query.
        passage: the positive.
        negatives: the negatives of the row; usually empty.
        columns: `ExtraColumns.row` by name; NaN for null.
        passage_columns: `ExtraColumns.passage` by name: the number of the positive and of each negative; NaN for null.
    """

    query: Query
    passage: Passage
    negatives: tuple[Passage, ...] = ()
    columns: Mapping[str, float | tuple[float, ...]] = dataclasses.field(default_factory=dict)
    passage_columns: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)


class RowParser:
    """Parser of rows with the field names of ReT-M2KR.

    A layout with other field names overrides `fields`. Two parsers are equivalent if they have the same `identity`, so a
    subclass with settings adds them to it.
    """

    @property
    def identity(self) -> tuple[str, ...]:
        """Key of the parser in caches of parsed rows; empty for the fields of ReT-M2KR."""
        own = type(self)
        return () if own is RowParser else (f"{own.__module__}.{own.__qualname__}",)

    def fields(self, content: Content, location: Location) -> RowFields:
        """Parse a row into fields with the names of ReT-M2KR.

        Args:
            content: the row as it is stored. NaN is read as null.
            location: source location of the row, for error messages.

        Raises:
            DataError: if the row is not a JSON object, or a number of it is infinite.
        """
        return parse_fields(content, location)

    def query(self, row: RowFields, with_positives: bool = True) -> Query:
        """Build a query from a row of a training, validation or test file, or of a file of queries to search with.

        Args:
            row: fields of the row.
            with_positives: whether to read the ids of the positives, which are then required.

        Raises:
            DataError: if a field is missing or has the wrong type, or the query is empty.
        """
        path, encoded = row.image("image_path", "image")
        query = Query(
            data_id=row.identifier("data_id"),
            instruction=row.text("instruction"),
            question=row.text("question"),
            image_path=path,
            image_bytes=encoded,
            passage_ids=row.identifiers("passage_id") if with_positives else (),
            answers=row.answers("answer"),
            subset=row.text("subset"),
            location=row.location,
        )
        if query.text is None and query.image is None:
            message = "query is empty; expected at least one of instruction, question and image_path"
            raise row.error(message, "empty_row", code="empty-query")
        return query

    def passage(self, row: RowFields) -> Passage:
        """Build a passage from a row of a passage file.

        Args:
            row: fields of the row.

        Raises:
            DataError: if a field is missing or has the wrong type.
        """
        path, encoded = row.image("passage_image_path", "passage_image")
        return Passage(row.identifier("passage_id"), row.text("passage_text"), path, encoded, row.location)

    def pair(self, row: RowFields, extra: ExtraColumns | None = None) -> TrainingPair:
        """Build a training pair from a row of a training file.

        Args:
            row: fields of the row.
            extra: further fields that are passed to the loss.

        Raises:
            DataError: if a field is missing or has the wrong type, or the query or a passage is empty.
        """
        query = self.query(row)
        text = row.text("passage_text")
        path, encoded = row.image("passage_image_path", "passage_image")
        if text is None and path is None and encoded is None:
            message = "passage is empty; expected at least one of passage_text and passage_image_path"
            raise row.error(message, "empty_row", code="empty-passage")
        passage = Passage(query.passage_ids[0], text, path, encoded, row.location)
        negatives = [(number, value) for number, value in enumerate(_read_negatives(row)) if value is not None]
        return TrainingPair(
            query,
            passage,
            tuple(self._build_negative(row, *each) for each in negatives),
            {name: row.numbers(name) for name in extra.row} if extra else {},
            {name: _read_passage_column(row, name, negatives) for name in extra.passage} if extra else {},
        )

    def subset(self, row: RowFields) -> tuple[str | None, str]:
        """Return the fields that determine the subset of a row.

        Args:
            row: fields of the row.

        Returns:
            `subset`, None if it is missing, and `data_id`, empty if it is not a text.
        """
        subset, data_id = row.values.get("subset"), row.values.get("data_id")
        return (
            (subset.strip() or None) if isinstance(subset, str) else None,
            data_id.strip() if isinstance(data_id, str) else "",
        )

    def parse_query(self, content: Content, location: Location, with_positives: bool = True) -> Query:
        """Parse a row into a query.

        Args:
            content: the row as it is stored.
            location: source location of the row, for error messages.
            with_positives: whether to read the ids of the positives, which are then required.

        Raises:
            DataError: if the row cannot be parsed, a field is missing or has the wrong type, or the query is empty.
        """
        return self.query(self.fields(content, location), with_positives)

    def parse_passage(self, content: Content, location: Location) -> Passage:
        """Parse a row into a passage.

        Args:
            content: the row as it is stored.
            location: source location of the row, for error messages.

        Raises:
            DataError: if the row cannot be parsed, or a field is missing or has the wrong type.
        """
        return self.passage(self.fields(content, location))

    def parse_pair(self, content: Content, location: Location, extra: ExtraColumns | None = None) -> TrainingPair:
        """Parse a row of a training file into a training pair.

        Args:
            content: the row as it is stored.
            location: source location of the row, for error messages.
            extra: further fields that are passed to the loss.

        Raises:
            DataError: if the row cannot be parsed, a field is missing or has the wrong type, or a query or passage is empty.
        """
        return self.pair(self.fields(content, location), extra)

    def parse_subset(self, content: Content) -> tuple[str | None, str]:
        """Return the fields `subset` and `data_id` of a row; (None, "") if it cannot be parsed."""
        try:
            return self.subset(self.fields(content, _NO_LOCATION))
        except DataError:
            return None, ""

    def _build_negative(self, row: RowFields, number: int, value: object) -> Passage:
        key = f"negative_passages[{number}]"
        if not isinstance(value, dict):
            raise row.type_error(key, "an object with passage_id and passage_text", value)
        negative = self.passage(RowFields(value, row.location))
        if negative.text is None and negative.image is None:
            message = f"field {key}: passage is empty; expected at least one of passage_text and passage_image_path"
            raise row.error(message, "empty_row", code="empty-negative", key=key)
        return negative


# Parser of the field names of ReT-M2KR.
M2KR_ROWS = RowParser()
parse_query, parse_passage, parse_pair = M2KR_ROWS.parse_query, M2KR_ROWS.parse_passage, M2KR_ROWS.parse_pair


def hash_content(rows: Sequence[Passage] | Sequence[Query]) -> str:
    """Return a hash of all texts, and of the paths or bytes of all images; image files are not read."""
    digest = hashlib.blake2b(digest_size=8)
    for row in rows:
        digest.update(_encode_content(row))
    return digest.hexdigest()


def hash_rows(rows: Sequence[Passage] | Sequence[Query]) -> np.ndarray:
    """Return a hash of the text and the image path or bytes of each row, (rows,) uint64; image files are not read."""
    digests = [hashlib.blake2b(_encode_content(row), digest_size=8).digest() for row in rows]
    return np.array([int.from_bytes(digest, "little") for digest in digests], dtype=np.uint64)


def _encode_content(row: Passage | Query) -> bytes:
    image = hashlib.blake2b(row.image).hexdigest() if isinstance(row.image, bytes) else row.image
    return json.dumps([row.text, image]).encode()


def _read_negatives(row: RowFields) -> list[Any]:
    """Read `negative_passages`, an extension of ReT-M2KR: a list of objects with the fields of a passage, or null."""
    values = row.values.get("negative_passages") or []
    if not isinstance(values, list):
        raise row.type_error("negative_passages", "a list of passages or null", values)
    return values


def _read_passage_column(
    row: RowFields, name: str, negatives: Sequence[tuple[int, dict[str, Any]]]
) -> tuple[float, ...]:
    """Read a column of passages: the number of the positive and of each negative, given with its position in the row."""
    value = row.numbers(name)
    if not isinstance(value, tuple):
        return (value, *(_read_negative_number(row, name, *each) for each in negatives))
    listed = 1 + len(_read_negatives(row))
    if len(value) != listed:
        message = f"field {name}: expected {listed} numbers, one for the positive and each negative, got {len(value)}"
        raise row.error(
            message, "wrong_type", code="passage-column-length", key=name, found=len(value), expected=listed
        )
    return (value[0], *(value[1 + number] for number, _ in negatives))


def _read_negative_number(row: RowFields, name: str, number: int, value: dict[str, Any]) -> float:
    found = RowFields(value, row.location).numbers(name)
    if isinstance(found, tuple):
        raise row.type_error(f"negative_passages[{number}].{name}", "a number or null", value[name])
    return found

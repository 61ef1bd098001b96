"""One line of a JSON Lines file, parsed and checked: the only place that knows the field names of ReT-M2KR.

Fields that are absent count as null, fields that nobody knows are ignored, ids may be strings or numbers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ret_lightning.errors import DataError


@dataclass(frozen=True)
class Place:
    """Where a row stands: file and 1-based line."""

    file: Path
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Query:
    """A query row.

    Attributes:
        data_id: as a string.
        text: instruction and question; None where the row has neither.
        image_path: relative to the image folder; None where the row has no image.
        passage_ids: the positives, as strings; at least one.
        answers: for pseudo recall; empty where the row has none.
        subset: what the row's `subset` field says, if there is one.
        place: where it stands.
    """

    data_id: str
    text: str | None
    image_path: str | None
    passage_ids: tuple[str, ...]
    answers: tuple[str, ...]
    subset: str | None
    place: Place


@dataclass(frozen=True)
class Passage:
    """A passage row; text and image path are None where it has none."""

    passage_id: str
    text: str | None
    image_path: str | None
    place: Place


@dataclass(frozen=True)
class TrainingPair:
    """A training row: a query with one positive passage, and the negatives that the row names, mostly none."""

    query: Query
    passage: Passage
    negatives: tuple[Passage, ...] = ()


def parse_query(line: str, place: Place) -> Query:
    """A query from one line of a test, validation or training file.

    Raises:
        DataError: naming file, line and field, if the line is not a JSON object or a field is missing or of a wrong type.
    """
    return _query(_Row(line, place))


def parse_passage(line: str, place: Place) -> Passage:
    """A passage from one line of a passage file; raises like `parse_query`."""
    row = _Row(line, place)
    return _passage(row)


def parse_pair(line: str, place: Place) -> TrainingPair:
    """A query and its positive from one line of a training file; raises like `parse_query`."""
    row = _Row(line, place)
    query = _query(row)
    text, image = row.text("passage_text"), row.path("passage_image_path")
    if text is None and image is None:
        raise DataError(f"{place}: an empty passage: the row has neither passage_text nor passage_image_path")
    return TrainingPair(query, Passage(query.passage_ids[0], text, image, place), _negatives(row))


def _query(row: _Row) -> Query:
    instruction, question = row.text("instruction"), row.text("question")
    query = Query(
        data_id=row.identifier("data_id"),
        text=" ".join(part for part in (instruction, question) if part is not None) or None,
        image_path=row.path("image_path"),
        passage_ids=row.identifiers("passage_id"),
        answers=row.answers("answer"),
        subset=row.text("subset"),
        place=row.place,
    )
    if query.text is None and query.image_path is None:
        raise DataError(f"{row.place}: an empty query: it has neither instruction, question nor image_path")
    return query


def _passage(row: _Row) -> Passage:
    return Passage(row.identifier("passage_id"), row.text("passage_text"), row.path("passage_image_path"), row.place)


def _negatives(row: _Row) -> tuple[Passage, ...]:
    """The field `negative_passages`, our extension: a list of objects with the fields of a passage row."""
    values = row.fields.get("negative_passages") or []
    if not isinstance(values, list):
        raise DataError(f"{row.place}: field negative_passages must be a list of passages or null, got {_kind(values)}")
    negatives = []
    for number, value in enumerate(values):
        where = f"{row.place}: negative_passages[{number}]"
        if not isinstance(value, dict):
            raise DataError(f"{where} must be an object with passage_id and passage_text, got {_kind(value)}")
        negative = _passage(_Row.of(value, row.place))
        if negative.text is None and negative.image_path is None:
            raise DataError(f"{where} is an empty passage: it has neither passage_text nor passage_image_path")
        negatives.append(negative)
    return tuple(negatives)


class _Row:
    """The fields of one line, each read with a check of its type."""

    def __init__(self, line: str, place: Place) -> None:
        self.place = place
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}: not JSON: {error}") from None
        if not isinstance(fields, dict):
            raise DataError(f"{place}: a row must be a JSON object, this line is {_kind(fields)}")
        self.fields: dict[str, Any] = fields

    @classmethod
    def of(cls, fields: dict[str, Any], place: Place) -> _Row:
        """An object that stands inside a line."""
        row = cls.__new__(cls)
        row.place, row.fields = place, fields
        return row

    def text(self, name: str) -> str | None:
        """A string stripped of white space; None for null, absent and blank ones."""
        value = self.fields.get(name)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self._wrong(name, "a string or null", value)
        return value.strip() or None

    def path(self, name: str) -> str | None:
        """A path below the image folder."""
        value = self.text(name)
        if value is not None:
            path = PurePosixPath(value)
            if path.is_absolute() or ".." in path.parts or "\0" in value:
                raise DataError(f"{self.place}: field {name}: {value!r} leads out of the image folder")
        return value

    def identifier(self, name: str) -> str:
        if name not in self.fields:
            raise DataError(
                f"{self.place}: field {name} is missing; the row has {', '.join(self.fields) or 'no fields'}"
            )
        return self._identifier(name, self.fields[name])

    def identifiers(self, name: str) -> tuple[str, ...]:
        """One id or a list of them, without repetitions, in order."""
        if not isinstance(self.fields.get(name), list):
            return (self.identifier(name),)
        values = tuple(dict.fromkeys(self._identifier(name, value) for value in self.fields[name]))
        if not values:
            raise DataError(f"{self.place}: field {name} is an empty list; a query needs at least one positive")
        return values

    def answers(self, name: str) -> tuple[str, ...]:
        """Answers as strings; of an object its `wikidata` value counts."""
        value = self.fields.get(name)
        values = [] if value is None else value if isinstance(value, list) else [value]
        answers = []
        for answer in values:
            if isinstance(answer, dict):
                if "wikidata" not in answer:
                    raise DataError(f"{self.place}: field {name}: an answer that is an object needs the key wikidata")
                answer = answer["wikidata"]
            if isinstance(answer, bool) or not isinstance(answer, str | int | float):
                raise self._wrong(name, "a list of strings or of objects with wikidata", answer)
            answers.append(str(answer))
        return tuple(answers)

    def _identifier(self, name: str, value: Any) -> str:
        if isinstance(value, str) and value.strip():
            return value.strip()
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # a column of ids that went through a table with gaps
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        raise self._wrong(name, "a string or a whole number", value)

    def _wrong(self, name: str, wanted: str, value: Any) -> DataError:
        return DataError(f"{self.place}: field {name} must be {wanted}, got {_kind(value)}")


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    shown = json.dumps(value, ensure_ascii=False, default=str)
    shown = shown if len(shown) <= 40 else shown[:37] + "..."
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return f"{names.get(type(value), type(value).__name__)}: {shown}"

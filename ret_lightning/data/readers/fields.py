"""The fields of a row, each read with a check of its type.

Every reader of rows begins here, so that all agree on what is missing: null, NaN (as Python's json and pandas write it), and
an absent field.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from pathlib import PurePosixPath
from typing import Any

from ret_lightning.data.readers.source_location import BytePlace, Place
from ret_lightning.errors import DataError

# A row as its file has it: a line of JSON Lines, in UTF-8 or decoded, or a row of a parquet file.
Content = bytes | str | dict[str, Any]


def fields_of(content: Content, place: Place | BytePlace) -> RowFields:
    """Parse a row.

    Args:
        content: the row. NaN counts as null, in every field and at any depth.
        place: of the row, for messages.

    Raises:
        DataError: if it is a line that is not UTF-8, not JSON, or not a JSON object, or if a number in it is Infinity.
    """
    try:
        values = _without_nan(content) if isinstance(content, dict) else _parsed(content)
    except _InfiniteNumberError as error:
        name, found = error.args
        message = (
            f"field {_printable(name)} holds {json.dumps(found)}; write a finite number, or null where there is none"
        )
        raise row_error(place, message, "not_finite", code="infinite-number", key=name, found=found) from None
    except UnicodeDecodeError as error:
        message = f"not UTF-8 text: {error.reason} at byte {error.start}"
        raise row_error(place, message, "bad_encoding", code="not-utf8", byte=error.start) from None
    except (ValueError, RecursionError) as error:
        # The text of the exception counts lines within the row, not within the file.
        reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise row_error(place, f"not JSON: {reason}", "bad_json", code="not-json") from None
    if not isinstance(values, dict):
        message = f"a row must be a JSON object, this line is {describe_value(values)}"
        raise row_error(place, message, "wrong_type", code="row-not-object", found=values)
    return RowFields(values, place)


class RowFields:
    """The fields of one row.

    Args:
        values: by name; NaN must be replaced by None already, see `fields_of`.
        place: of the row, for messages.
    """

    def __init__(self, values: dict[str, Any], place: Place | BytePlace) -> None:
        self.values = values
        self.place = place

    def text(self, name: str) -> str | None:
        """Read a string, stripped of white space; None if it is missing or blank."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.wrong(name, "a string or null", value)
        return self._encodable(name, value.strip()) or None

    def image(self, path_name: str, bytes_name: str) -> tuple[str | None, bytes | None]:
        """Read an image's path below the image folder, or where that is missing or blank the encoded image itself.

        A path is taken as it is: file names may begin and end with spaces.
        The second field may hold bytes, base64 text (in JSON), or an object with `bytes` and `path`, as `datasets` writes
        its images; it is not read where the first one names a file.
        """
        path, value = self._path(path_name, self.values.get(path_name)), self.values.get(bytes_name)
        if path is not None or value is None:
            return path, None
        if isinstance(value, dict):
            if value.get("bytes") is None:
                return self._path(
                    bytes_name, value.get("path"), "an object whose path is a string or null", value
                ), None
            value = value["bytes"]
        if isinstance(value, str):
            try:
                value = base64.b64decode(value, validate=True)
            except (binascii.Error, ValueError):
                raise self.wrong(bytes_name, "an image in base64", value) from None
        if not isinstance(value, bytes):
            raise self.wrong(bytes_name, "bytes, base64 text, or an object with bytes and path", value)
        return None, value or None

    def identifier(self, name: str) -> str:
        """Read a string or a whole number, as a string."""
        if name not in self.values:
            raise self._missing(name)
        return self._identifier(name, self.values[name])

    def identifiers(self, name: str) -> tuple[str, ...]:
        """Read one id or a list of them, without repetitions, in order."""
        if not isinstance(self.values.get(name), list):
            return (self.identifier(name),)
        values = tuple(dict.fromkeys(self._identifier(name, value) for value in self.values[name]))
        if not values:
            message = f"field {name} is an empty list; a query needs at least one positive"
            raise self.error(message, "missing_field", code="empty-id-list", key=name)
        return values

    def answers(self, name: str) -> tuple[str, ...]:
        """Read one answer or a list of them, as strings; of an object its `wikidata` value counts.

        Missing answers are left out, and whole floats, which a column of numbers with gaps holds, are whole numbers.
        """
        value = self.values.get(name)
        answers = []
        for answer in value if isinstance(value, list) else [value]:
            if isinstance(answer, dict):
                if "wikidata" not in answer:
                    message = f"field {name}: an answer that is an object needs the key wikidata, got {describe_value(answer)}"
                    raise self.error(message, "missing_field", code="answer-without-wikidata", key=name, found=answer)
                answer = answer["wikidata"]
            if answer is None:
                continue
            answer = _whole(answer)
            is_number = isinstance(answer, int | float) and not isinstance(answer, bool)
            if is_number and not isinstance(answer, int):  # which may be too large for `isfinite`
                is_number = math.isfinite(answer)
            if not is_number and not isinstance(answer, str):
                raise self.wrong(name, "a list of strings, numbers, or objects with wikidata", answer)
            answers.append(self._encodable(name, str(answer)))
        return tuple(answers)

    def numbers(self, name: str) -> float | tuple[float, ...]:
        """Read a number or a list of numbers, as floats; null is NaN, and true and false are 1 and 0."""
        if name not in self.values:
            raise self._missing(name)
        value = self.values[name]
        items = value if isinstance(value, list) else [value]
        if not all(item is None or isinstance(item, int | float) for item in items):
            raise self.wrong(name, "a number, null, or a list of these", value)
        try:
            numbers = tuple(math.nan if item is None else float(item) for item in items)
        except OverflowError:
            raise self.wrong(name, "a number that a float holds", value) from None
        return numbers if isinstance(value, list) else numbers[0]

    def error(self, message: str, kind: str, *, code: str, **values: Any) -> DataError:
        """Make the error of this row; see `row_error`."""
        return row_error(self.place, message, kind, code=code, **values)

    def wrong(self, name: str, allowed: str, value: Any) -> DataError:
        """Make the error of a field of a wrong type."""
        message = f"field {name} must be {allowed}, got {describe_value(value)}"
        return self.error(message, "wrong_type", code="field-type", key=name, found=value, allowed=allowed)

    def _missing(self, name: str) -> DataError:
        names = ", ".join(json.dumps(key)[1:-1] for key in list(self.values)[:20]) or "no fields"
        names = names if len(names) <= 200 else names[:197] + "..."
        message = f"field {name} is missing; the row has {names}"
        return self.error(message, "missing_field", code="missing-field", key=name)

    def _path(self, name: str, value: Any, allowed: str = "a string or null", found: Any = None) -> str | None:
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.wrong(name, allowed, value if found is None else found)
        if not value.strip():
            return None
        if "\0" in value:
            message = f"field {name}: {value!r} holds a null character, which no file name can"
            raise self.error(message, "missing_image", code="path-null-character", key=name, found=value)
        path = PurePosixPath(value)
        if path.is_absolute() or ".." in path.parts:
            message = f"field {name}: {value!r} leads out of the image folder"
            raise self.error(message, "path_outside", code="path-outside", key=name, found=value)
        return self._encodable(name, value)

    def _encodable(self, name: str, text: str) -> str:
        # JSON can spell half a surrogate pair, which no UTF-8 file, tokenizer or hash takes.
        if not text.isascii():
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                half = text[error.start]
                message = f"field {name}: {half!r} is half a surrogate pair, not a character"
                raise self.error(message, "bad_encoding", code="half-surrogate", key=name, found=half) from None
        return text

    def _identifier(self, name: str, value: Any) -> str:
        if isinstance(value, str) and value.strip():
            return self._encodable(name, value.strip())
        whole = _whole(value)
        if isinstance(whole, int) and not isinstance(whole, bool):
            return str(whole)
        raise self.wrong(name, "a string or a whole number", value)


def row_error(place: Place | BytePlace, message: str, kind: str, *, code: str, **values: Any) -> DataError:
    """Make the error of a row.

    Args:
        place: of the row. The error has `path` and `line`, unless the place is an `UntoldPlace`.
        message: without the place.
        kind: see `DataError`.
        code: see `UserError`.
        values: see `UserError`.
    """
    if isinstance(place, BytePlace):
        place = Place(place.file, place.line)  # counts the lines, which is to be done once
    where = {"path": place.file, "line": place.line} if isinstance(place, Place) else {}
    return DataError(f"{place}: {message}", kind, code=code, **where, **values)


def describe_value(value: Any) -> str:
    """Describe a value for a message: its type and its beginning."""
    if value is None:
        return "null"
    text = _printable(
        json.dumps(value if not isinstance(value, bytes) else repr(value[:40]), ensure_ascii=False, default=str)
    )
    names = {
        dict: "an object", list: "a list", str: "a string", bytes: "bytes", bool: "a boolean", int: "a number",
        float: "a number",
    }  # fmt: skip
    return f"{names.get(type(value), type(value).__name__)}: {text}"


def _printable(text: str) -> str:
    """The beginning of a text, on one line; half surrogate pairs, which cannot be printed, are escaped."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text[:80])
    return text if len(text) <= 40 else text[:37] + "..."


def _whole(value: Any) -> Any:
    """A whole float as an int; any other value as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class _InfiniteNumberError(Exception):
    """A number of a row is infinite; its last argument is the number, the one before is the field."""


def _parsed(line: bytes | str) -> Any:
    """The value of a line of JSON; of an object without NaN and Infinity."""
    text = line.decode("utf-8") if isinstance(line, bytes) else line
    try:
        return _DECODER.decode(text)
    except _InfiniteNumberError:
        values = json.loads(text)  # again, to find the field
        return _without_nan(values) if isinstance(values, dict) else values


def _constant(name: str) -> None:
    """The value of what Python's json writes, though it is no JSON: NaN, Infinity or -Infinity."""
    if name != "NaN":
        raise _InfiniteNumberError


_DECODER = json.JSONDecoder(parse_constant=_constant)


def _without_nan(row: dict[str, Any]) -> dict[str, Any]:
    values = {}
    for name, value in row.items():
        try:
            values[name] = _nan_as_none(value)
        except _InfiniteNumberError as error:
            raise _InfiniteNumberError(name, *error.args) from None
    return values


def _nan_as_none(value: Any) -> Any:
    """The value with None in place of every NaN, at any depth; raises _InfiniteNumberError."""
    if isinstance(value, float) and not math.isfinite(value):
        if math.isinf(value):
            raise _InfiniteNumberError(value)
        return None
    if isinstance(value, list):
        return [_nan_as_none(item) for item in value]
    if isinstance(value, dict):
        return {key: _nan_as_none(item) for key, item in value.items()}
    return value

"""Fields of a row, read with type checks.

All row readers use this module, so that they agree on which values are missing: null, NaN (as Python's json and pandas write
it) and absent fields.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from pathlib import PurePosixPath
from typing import Any

from ret_lightning.data.readers.source_location import ByteLocation, Location, SourceLocation
from ret_lightning.errors import DataError
from ret_lightning.runtime.deprecation import RenamedAttribute

# A row as it is stored: a line of JSON Lines, as UTF-8 bytes or decoded, or a row of a parquet file.
Content = bytes | str | dict[str, Any]


def parse_fields(content: Content, location: Location) -> RowFields:
    """Parse a row into its fields.

    Args:
        content: the row as it is stored. NaN is read as null, in every field and at any depth.
        location: source location of the row, for error messages.

    Raises:
        DataError: if a line is not UTF-8, not JSON or not a JSON object, or if a number of the row is infinite.
    """
    try:
        values = _row_nan_as_none(content) if isinstance(content, dict) else _decode_line(content)
    except _InfiniteNumberError as error:
        name, found = error.args
        message = (
            f"field {_printable(name)}: expected finite numbers, got {json.dumps(found)}; use null for missing numbers"
        )
        raise row_error(location, message, "not_finite", code="infinite-number", key=name, found=found) from None
    except UnicodeDecodeError as error:
        message = f"not UTF-8: {error.reason} at byte {error.start}; save the file as UTF-8"
        raise row_error(location, message, "bad_encoding", code="not-utf8", byte=error.start) from None
    except (ValueError, RecursionError) as error:
        # The text of a JSONDecodeError counts lines within the row, not within the file.
        reason, column = str(error), None
        if isinstance(error, json.JSONDecodeError):
            reason, column = f"{error.msg.removesuffix(' at')} at column {error.colno}", error.colno
        raise row_error(
            location, f"not JSON: {reason}", "bad_json", code="not-json", reason=reason, column=column
        ) from None
    if not isinstance(values, dict):
        message = f"expected a JSON object, got {describe_value(values)}"
        raise row_error(location, message, "wrong_type", code="row-not-object", found=values)
    return RowFields(values, location)


class RowFields:
    """The fields of one row, with a reader for each type of field.

    Args:
        values: field name to value, with None for NaN.
        location: source location of the row, for error messages.
    """

    def __init__(self, values: dict[str, Any], location: Location) -> None:
        self.values = values
        self.location = location

    place = RenamedAttribute("location")

    def text(self, name: str) -> str | None:
        """Read a string field.

        Args:
            name: name of the field.

        Returns:
            The string without leading and trailing white space; None if it is missing or blank.

        Raises:
            DataError: if the value is not a string, or contains an unpaired surrogate.
        """
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.type_error(name, "a string or null", value)
        return self._encodable(name, value.strip()) or None

    def image(self, path_name: str, bytes_name: str) -> tuple[str | None, bytes | None]:
        """Read an image: the path of a file or, if the row names no file, an encoded image.

        Args:
            path_name: name of the field with the path, relative to the image folder. White space in a path is kept.
            bytes_name: name of the field with the encoded image: bytes, base64 text, or an object with `bytes` and `path`, as
                `datasets` writes images. It is read only if the path is missing or blank.

        Returns:
            The path or None, and the encoded image or None. At most one of them is not None.

        Raises:
            DataError: if a value has the wrong type, or a path is not below the image folder.
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
                raise self.type_error(bytes_name, "an image in base64", value) from None
        if not isinstance(value, bytes):
            raise self.type_error(bytes_name, "bytes, base64 text, or an object with bytes and path", value)
        return None, value or None

    def identifier(self, name: str) -> str:
        """Read an id, a string or an integer, as a string.

        Args:
            name: name of the field.

        Raises:
            DataError: if the field is missing, blank or of another type.
        """
        if name not in self.values:
            raise self._missing(name)
        return self._identifier(name, self.values[name])

    def identifiers(self, name: str) -> tuple[str, ...]:
        """Read one id or a list of ids as strings, without duplicates, in order.

        Args:
            name: name of the field.

        Raises:
            DataError: if the field is missing, an empty list, or holds a value that is not an id.
        """
        if not isinstance(self.values.get(name), list):
            return (self.identifier(name),)
        values = tuple(dict.fromkeys(self._identifier(name, value) for value in self.values[name]))
        if not values:
            message = f"field {name} is an empty list; expected the id of at least one positive passage"
            raise self.error(message, "missing_field", code="empty-id-list", key=name)
        return values

    def answers(self, name: str) -> tuple[str, ...]:
        """Read one answer or a list of answers as strings.

        The answer of an object is its value of `wikidata`. Missing answers are skipped. Floats without a fractional part, which
        columns of integers with missing values contain, are read as integers.

        Args:
            name: name of the field.

        Raises:
            DataError: if an answer has another type, or an object has no `wikidata`.
        """
        value = self.values.get(name)
        answers = []
        for answer in value if isinstance(value, list) else [value]:
            if isinstance(answer, dict):
                if "wikidata" not in answer:
                    message = f"field {name}: expected an answer with the key wikidata, got {describe_value(answer)}"
                    raise self.error(message, "missing_field", code="answer-without-wikidata", key=name, found=answer)
                answer = answer["wikidata"]
            if answer is None:
                continue
            answer = _integral_as_int(answer)
            is_number = isinstance(answer, int | float) and not isinstance(answer, bool)
            if is_number and not isinstance(answer, int):  # an int may be too large for `isfinite`
                is_number = math.isfinite(answer)
            if not is_number and not isinstance(answer, str):
                raise self.type_error(name, "a list of strings, numbers, or objects with wikidata", answer)
            answers.append(self._encodable(name, str(answer)))
        return tuple(answers)

    def numbers(self, name: str) -> float | tuple[float, ...]:
        """Read a number or a list of numbers as floats; null is read as NaN, true as 1 and false as 0.

        Args:
            name: name of the field.

        Raises:
            DataError: if the field is missing, has another type, or holds a number that is too large for a float.
        """
        if name not in self.values:
            raise self._missing(name)
        value = self.values[name]
        items = value if isinstance(value, list) else [value]
        if not all(item is None or isinstance(item, int | float) for item in items):
            raise self.type_error(name, "a number, null, or a list of these", value)
        try:
            numbers = tuple(math.nan if item is None else float(item) for item in items)
        except OverflowError:
            raise self.type_error(name, "a number that fits into a float", value) from None
        return numbers if isinstance(value, list) else numbers[0]

    def error(self, message: str, kind: str, *, code: str, **values: Any) -> DataError:
        """Return an error that names the source location of this row; the arguments are those of `row_error`."""
        return row_error(self.location, message, kind, code=code, **values)

    def type_error(self, name: str, allowed: str, value: object) -> DataError:
        """Return the error of a field with a value of the wrong type.

        Args:
            name: name of the field.
            allowed: the allowed types, in words.
            value: the value of the field.
        """
        message = f"field {name} must be {allowed}, got {describe_value(value)}"
        return self.error(message, "wrong_type", code="field-type", key=name, found=value, allowed=allowed)

    def _missing(self, name: str) -> DataError:
        names = ", ".join(json.dumps(key)[1:-1] for key in list(self.values)[:20]) or "no fields"
        names = names if len(names) <= 200 else names[:197] + "..."
        message = f"field {name} is missing; the row has {names}"
        return self.error(message, "missing_field", code="missing-field", key=name)

    def _path(self, name: str, value: object, allowed: str = "a string or null", found: object = None) -> str | None:
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.type_error(name, allowed, value if found is None else found)
        if not value.strip():
            return None
        if "\0" in value:
            message = f"field {name}: path {value!r} contains a null character"
            raise self.error(message, "missing_image", code="path-null-character", key=name, found=value)
        path = PurePosixPath(value)
        if path.is_absolute() or ".." in path.parts:
            message = f"field {name}: path {value!r} is outside the image folder; use a path relative to it"
            raise self.error(message, "path_outside", code="path-outside", key=name, found=value)
        return self._encodable(name, value)

    def _encodable(self, name: str, text: str) -> str:
        # JSON can contain unpaired surrogates, which UTF-8 cannot encode.
        if not text.isascii():
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                half = text[error.start]
                message = f"field {name} contains {half!r}, an unpaired surrogate, which is not a character"
                raise self.error(message, "bad_encoding", code="half-surrogate", key=name, found=half) from None
        return text

    def _identifier(self, name: str, value: object) -> str:
        if isinstance(value, str) and value.strip():
            return self._encodable(name, value.strip())
        number = _integral_as_int(value)
        if isinstance(number, int) and not isinstance(number, bool):
            return str(number)
        raise self.type_error(name, "a string or an integer", value)


def row_error(location: Location, message: str, kind: str, *, code: str, **values: Any) -> DataError:
    """Return the error of a row.

    Args:
        location: source location of the row. The error has the values `path` and `line`, unless it is a `DeferredLocation`.
        message: the message without the location.
        kind: category that skipped rows are counted by, see `DataError`.
        code: stable code of the message.
        values: further values that the message reports.
    """
    if isinstance(location, ByteLocation):
        location = SourceLocation(location.file, location.line)  # counts the lines once, not at every use
    where = {"path": location.file, "line": location.line} if isinstance(location, SourceLocation) else {}
    return DataError(f"{location}: {message}", kind, code=code, **where, **values)


def describe_value(value: object) -> str:
    """Return the type of a value and the beginning of its text, for error messages."""
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
    """Return the beginning of a text on one line, with unprintable characters and unpaired surrogates escaped."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text[:80])
    return text if len(text) <= 40 else text[:37] + "..."


def _integral_as_int(value: Any) -> Any:
    """Convert a float without a fractional part to an int; return any other value unchanged."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class _InfiniteNumberError(Exception):
    """Raised for an infinite number; the arguments are the field, if it is known, and the number."""


def _decode_line(line: bytes | str) -> Any:
    """Decode a line of JSON; NaN is None, and an infinite number in an object raises `_InfiniteNumberError`."""
    text = line.decode("utf-8") if isinstance(line, bytes) else line
    try:
        return _DECODER.decode(text)
    except _InfiniteNumberError:
        values = json.loads(text)  # a second time, to find the field
        return _row_nan_as_none(values) if isinstance(values, dict) else values


def _decode_constant(name: str) -> None:
    """Decode NaN, Infinity or -Infinity, which Python's json writes although they are not JSON."""
    if name != "NaN":
        raise _InfiniteNumberError


_DECODER = json.JSONDecoder(parse_constant=_decode_constant)


def _row_nan_as_none(row: dict[str, Any]) -> dict[str, Any]:
    values = {}
    for name, value in row.items():
        try:
            values[name] = _nan_as_none(value)
        except _InfiniteNumberError as error:
            raise _InfiniteNumberError(name, *error.args) from None
    return values


def _nan_as_none(value: Any) -> Any:
    """Replace NaN by None at any depth; raise `_InfiniteNumberError` for an infinite number."""
    if isinstance(value, float) and not math.isfinite(value):
        if math.isinf(value):
            raise _InfiniteNumberError(value)
        return None
    if isinstance(value, list):
        return [_nan_as_none(item) for item in value]
    if isinstance(value, dict):
        return {key: _nan_as_none(item) for key, item in value.items()}
    return value

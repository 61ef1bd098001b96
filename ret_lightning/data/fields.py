"""The fields of a row, each read with a check of its type."""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import PurePosixPath
from typing import Any

from ret_lightning.data.places import BytePlace, Place
from ret_lightning.errors import DataError

# A row as it stands in its file: a line of JSON Lines, in UTF-8 or decoded, or a row of a parquet file.
Content = bytes | str | dict[str, Any]


def fields_of(content: Content, place: Place | BytePlace) -> Fields:
    """The fields of a row.

    Raises:
        DataError: if it is a line that is not UTF-8, not JSON, or not a JSON object.
    """
    if isinstance(content, dict):
        return Fields(content, place)
    try:
        values = json.loads(content.decode("utf-8") if isinstance(content, bytes) else content)
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: not UTF-8 text: {error.reason} at byte {error.start}", kind="bad_encoding") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not JSON: {error}", kind="bad_json") from None
    if not isinstance(values, dict):
        raise DataError(f"{place}: a row must be a JSON object, this line is {shown(values)}", kind="wrong_type")
    return Fields(values, place)


class Fields:
    """The fields of one row.

    Args:
        values: name to value.
        place: of the row, for messages.
    """

    def __init__(self, values: dict[str, Any], place: Place | BytePlace) -> None:
        self.values = values
        self.place = place

    def text(self, name: str) -> str | None:
        """A string stripped of white space; None for null, absent and blank ones."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.wrong(name, "a string or null", value)
        return self._encodable(name, value.strip()) or None

    def image(self, path_name: str, bytes_name: str) -> tuple[str | None, bytes | None]:
        """An image's path below the image folder, or where that is null the encoded image itself.

        The second field may hold bytes, base64 text (in JSON), or an object with `bytes` and `path`, as `datasets` writes
        its images; it is not looked at where the first one names a file.
        """
        path = self._path(path_name, self.text(path_name))
        value = self.values.get(bytes_name)
        if path is not None or value is None:
            return path, None
        if isinstance(value, dict):
            if value.get("bytes") is None:
                path = value.get("path")
                if path is not None and not isinstance(path, str):
                    raise self.wrong(bytes_name, "an object whose path is a string", value)
                return self._path(bytes_name, path or None), None
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
        """A string or a whole number, as a string."""
        if name not in self.values:
            names = ", ".join(json.dumps(key)[1:-1] for key in list(self.values)[:20]) or "no fields"
            names = names if len(names) <= 200 else names[:197] + "..."
            raise DataError(f"{self.place}: field {name} is missing; the row has {names}", kind="missing_field")
        return self._identifier(name, self.values[name])

    def identifiers(self, name: str) -> tuple[str, ...]:
        """One id or a list of them, without repetitions, in order."""
        if not isinstance(self.values.get(name), list):
            return (self.identifier(name),)
        values = tuple(dict.fromkeys(self._identifier(name, value) for value in self.values[name]))
        if not values:
            message = f"{self.place}: field {name} is an empty list; a query needs at least one positive"
            raise DataError(message, kind="missing_field")
        return values

    def answers(self, name: str) -> tuple[str, ...]:
        """Answers as strings; of an object its `wikidata` value counts."""
        value = self.values.get(name)
        values = [] if value is None else value if isinstance(value, list) else [value]
        answers = []
        for answer in values:
            if isinstance(answer, dict):
                if "wikidata" not in answer:
                    message = f"{self.place}: field {name}: an answer that is an object needs the key wikidata"
                    raise DataError(message, kind="missing_field")
                answer = answer["wikidata"]
            if isinstance(answer, bool) or not isinstance(answer, str | int | float):
                raise self.wrong(name, "a list of strings or of objects with wikidata", answer)
            answers.append(self._encodable(name, str(answer)))
        return tuple(answers)

    def wrong(self, name: str, wanted: str, value: Any) -> DataError:
        """The error of a field that is of a wrong type."""
        return DataError(f"{self.place}: field {name} must be {wanted}, got {shown(value)}", kind="wrong_type")

    def _path(self, name: str, value: str | None) -> str | None:
        if value is not None:
            path = PurePosixPath(value)
            if path.is_absolute() or ".." in path.parts or "\0" in value:
                message = f"{self.place}: field {name}: {value!r} leads out of the image folder"
                raise DataError(message, kind="path_outside")
        return value

    def _encodable(self, name: str, text: str) -> str:
        # JSON can spell half a surrogate pair, which no UTF-8 file, tokenizer or hash takes.
        if not text.isascii():
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                message = f"{self.place}: field {name}: half a surrogate pair, {text[error.start]!r}, is no character"
                raise DataError(message, kind="bad_encoding") from None
        return text

    def _identifier(self, name: str, value: Any) -> str:
        if isinstance(value, str) and value.strip():
            return self._encodable(name, value.strip())
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # a column of ids that went through a table with gaps
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        raise self.wrong(name, "a string or a whole number", value)


def shown(value: Any) -> str:
    """What kind of value it is, and its beginning, for a message."""
    if value is None:
        return "null"
    text = json.dumps(value if not isinstance(value, bytes) else repr(value[:40]), ensure_ascii=False, default=str)
    # Half surrogate pairs cannot be printed, and some white space would begin another line.
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text[:80])
    text = text if len(text) <= 40 else text[:37] + "..."
    names = {
        dict: "an object", list: "a list", str: "a string", bytes: "bytes", bool: "a boolean", int: "a number",
        float: "a number",
    }  # fmt: skip
    return f"{names.get(type(value), type(value).__name__)}: {text}"

"""Errors that a user can fix. Each message has a stable code that tests, scripts and the documentation refer to."""

from __future__ import annotations

import re
import traceback
from typing import Any

# PyTorch re-raises the exception of a loader worker in the main process with the worker's traceback as its message.
_FROM_WORKER = "Original Traceback (most recent call last)"
_TEARDOWN = {"_teardown", "teardown", "_interrupt"}  # functions of Lightning
_NO_CODE = "user-error"  # the default for errors raised outside this package; not printed
_CLASS = re.compile(r"^(?:\w+\.)+\w+: ", re.MULTILINE)
_CODE = re.compile(r" \[([a-z0-9]+(?:-[a-z0-9]+)*)\]\Z")


class UserError(Exception):
    """An error in a user's input: a config, a file or an argument.

    `str(error)` is one line that states what is wrong, where, and how to fix it, followed by the code in brackets:
    `okvqa_test.jsonl:8: field passage_id is missing [missing-field]`. Commands print this line without a traceback and
    exit with `exit_code`. Library callers catch the error by its type.

    Args:
        message: One line: what, where (`file:line`, key, option), the value found, what is allowed, how to fix it.
        code: Stable identifier of the message, lower-case words joined by hyphens. A released code never changes.
        values: The values in the message (`path`, `line`, `key`, `found`, `allowed`, ...). Each is also an attribute of
            the error.

    Attributes:
        message: The message without the code.
        code: The code.
        values: The values by name. Empty if the error was raised in a loader worker, which transfers only text.
    """

    exit_code = 1

    def __init__(self, message: str, *, code: str = _NO_CODE, **values: Any) -> None:
        if _FROM_WORKER in message:
            message, code = _unwrapped(message, code)
        super().__init__(message)
        self.message = message
        self.code = code
        self.values = values

    def __getattr__(self, name: str) -> Any:
        values = self.__dict__.get("values", {})
        if name in values:
            return values[name]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __str__(self) -> str:
        return self.message if self.code == _NO_CODE else f"{self.message} [{self.code}]"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.message, {"code": self.code, **self.values, **self._options()})

    def _options(self) -> dict[str, Any]:
        """Return the additional keyword arguments of a subclass, which pickling must keep."""
        return {}


class ConfigError(UserError):
    """An error in a config file or on the command line."""


class DataError(UserError):
    """An error in a data file: a broken row, an unreadable image or a missing file.

    Args:
        message: One line: what, where (`file:line`, key, option), the value found, what is allowed, how to fix it.
        kind: Category under which skipped rows are counted: bad_json, missing_field, wrong_type, empty_row, bad_encoding,
            missing_image, unreadable_image and others.
        code: Stable identifier of the message, lower-case words joined by hyphens.
        values: The values in the message by name. Each is also an attribute of the error.
    """

    def __init__(self, message: str, kind: str = "other", *, code: str = _NO_CODE, **values: Any) -> None:
        super().__init__(message, code=code, **values)
        self.kind = kind

    def _options(self) -> dict[str, Any]:
        return {"kind": self.kind}


class TokenError(DataError, ValueError):
    """Token ids outside the range of a text backbone: the tokenizer is not the one the checkpoint was trained with."""


class Stopped(UserError):
    """A run that stopped on request and can be resumed.

    Args:
        message: What stopped the run and where its state is saved.
        number: Signal number. Commands exit with 128 + `number`, the convention of shells.
        code: Stable identifier of the message, lower-case words joined by hyphens.
        values: The values in the message by name. Each is also an attribute of the error.
    """

    def __init__(self, message: str, number: int = 0, *, code: str = _NO_CODE, **values: Any) -> None:
        super().__init__(message, code=code, **values)
        self.number = number
        self.exit_code = 128 + number

    def _options(self) -> dict[str, Any]:
        return {"number": self.number}


def split_code(line: str) -> tuple[str, str | None]:
    """Split a printed error, `message [code]`, into its message and its code; the code is None if the line has none."""
    found = _CODE.search(line)
    return (line[: found.start()], found[1]) if found else (line, None)


def one_line(error: BaseException) -> str:
    """Return the class and message of an exception that is not a `UserError`, as one line.

    For an exception that a loader worker raised, both are those of the original exception.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if _FROM_WORKER in str(error):
        return lines[-1]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def original_error(error: BaseException) -> BaseException:
    """Return the error that ended a run, not one that Lightning's teardown raised while handling it."""
    while not isinstance(error, UserError) and error.__context__ is not None and error.__cause__ is None:
        frames = {frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)}
        if not frames & _TEARDOWN:
            break
        error = error.__context__
    return error


def _restore(kind: type[UserError], message: str, options: dict[str, Any]) -> UserError:
    return kind(message, **options)


def _unwrapped(text: str, code: str) -> tuple[str, str]:
    """Return the message and code from PyTorch's report of a worker's error, which ends in the error's class and text."""
    message, found = split_code(_CLASS.split(text.strip())[-1])
    return message, found or code

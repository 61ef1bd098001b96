"""Errors that a user can fix. Each message has a stable code, by which tests, scripts and the documentation refer to it."""

from __future__ import annotations

import re
import traceback
from typing import Any

# How PyTorch hands an exception of a loader worker to the main process: its class, and its traceback as the message.
_FROM_WORKER = "Original Traceback (most recent call last)"
_TEARDOWN = {"_teardown", "teardown", "_interrupt"}  # functions of Lightning
_NO_CODE = "user-error"  # of errors that code outside this package raises; not printed
_CLASS = re.compile(r"^(?:\w+\.)+\w+: ", re.MULTILINE)
_CODE = re.compile(r" \[([a-z0-9]+(?:-[a-z0-9]+)*)\]\Z")


class UserError(Exception):
    """An error in what the user provided: a config, a file, an argument.

    `str(error)` is one line that states what is wrong, where, and how to fix it, followed by the code in brackets:
    `okvqa_test.jsonl:8: field passage_id is missing [missing-field]`. Commands print it without a traceback and exit with
    `exit_code`; library callers catch it by this type.

    Args:
        message: one line: what, where (`file:line`, key, option), the value found, what is allowed, how to fix it.
        code: lower-case words joined by hyphens, one for each message; it never changes once released.
        values: what the message reports (`path`, `line`, `key`, `found`, `allowed`, ...). Each is an attribute of the error.

    Attributes:
        message: without the code.
        code: the code.
        values: the values by name. Empty after the error came out of a loader worker, which transports text only.
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
        """Further keyword arguments of a subclass, so that its instances survive pickling."""
        return {}


class ConfigError(UserError):
    """An error in a config file or on the command line."""


class DataError(UserError):
    """An error in a data file: a broken row, an unreadable image, a missing file.

    Args:
        message: see `UserError`.
        kind: the category that skipped rows are counted by: bad_json, missing_field, wrong_type, empty_row, bad_encoding,
            missing_image, unreadable_image and others.
        code: see `UserError`.
        values: see `UserError`.
    """

    def __init__(self, message: str, kind: str = "other", *, code: str = _NO_CODE, **values: Any) -> None:
        super().__init__(message, code=code, **values)
        self.kind = kind

    def _options(self) -> dict[str, Any]:
        return {"kind": self.kind}


class TokenError(DataError, ValueError):
    """Token ids that a text backbone cannot take: the tokenizer is not the one that the checkpoint was trained with."""


class Stopped(UserError):
    """A run was asked to stop, and did; it can be resumed.

    Args:
        message: what stopped it, and where its state is saved.
        number: of the signal; commands exit with 128 more, as shells do.
        code: see `UserError`.
        values: see `UserError`.
    """

    def __init__(self, message: str, number: int = 0, *, code: str = _NO_CODE, **values: Any) -> None:
        super().__init__(message, code=code, **values)
        self.number = number
        self.exit_code = 128 + number

    def _options(self) -> dict[str, Any]:
        return {"number": self.number}


def split_code(line: str) -> tuple[str, str | None]:
    """The message and the code of a printed error, `message [code]`; None where the line ends in no code."""
    found = _CODE.search(line)
    return (line[: found.start()], found[1]) if found else (line, None)


def one_line(error: BaseException) -> str:
    """The class and the message of an error that is no `UserError`; of a loader worker's error, those of the worker's."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if _FROM_WORKER in str(error):
        return lines[-1]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def original_error(error: BaseException) -> BaseException:
    """The error that ended a run: Lightning tears the run down while it handles it, and may fail in that, too."""
    while not isinstance(error, UserError) and error.__context__ is not None and error.__cause__ is None:
        frames = {frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)}
        if not frames & _TEARDOWN:
            break
        error = error.__context__
    return error


def _restore(kind: type[UserError], message: str, options: dict[str, Any]) -> UserError:
    return kind(message, **options)


def _unwrapped(text: str, code: str) -> tuple[str, str]:
    """The message and code in PyTorch's report of a worker's error; a traceback ends in the class and the text of its error."""
    message, found = split_code(_CLASS.split(text.strip())[-1])
    return message, found or code

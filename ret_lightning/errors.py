"""The errors that a user can mend."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in what the user gave: a config, a file, an argument.

    The message is one line (or one line a mistake) that says what is wrong, where, and how to mend it. Commands print it
    without a traceback and exit with a code other than zero; library callers catch it by this type.
    """


class ConfigError(UserError):
    """A mistake in a config file or on the command line."""


class DataError(UserError):
    """A mistake in a data file: a broken row, an unreadable image, a missing file.

    Args:
        message: one line.
        kind: what sort of mistake it is, a short name to count by, such as `missing_image`; who raises the error chooses it.
    """

    def __init__(self, message: str, kind: str = "other") -> None:
        super().__init__(message)
        self.kind = kind

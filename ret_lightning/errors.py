"""The errors that a user can mend."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in what the user gave: a config, a file, an argument.

    The message is one line (or one line a mistake) that says what is wrong, where, and how to mend it. Commands print it
    without a traceback and exit with `exit_code`; library callers catch it by this type.
    """

    exit_code = 1


class ConfigError(UserError):
    """A mistake in a config file or on the command line."""


class DataError(UserError):
    """A mistake in a data file: a broken row, an unreadable image, a missing file.

    Args:
        message: one line: what is wrong, where, and how to mend it.
        kind: what broken rows are counted by: bad_json, missing_field, wrong_type, empty_row, bad_encoding, missing_image,
            unreadable_image and the like.
    """

    def __init__(self, message: str, kind: str = "other") -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type[DataError], tuple[str, str]]:
        # By itself an exception forgets its second argument between processes.
        return type(self), (str(self), self.kind)


class TokenError(DataError, ValueError):
    """Token ids that a text backbone cannot take: the tokenizer is not the one that the checkpoint was trained with."""


class Stopped(UserError):
    """A run was asked to stop, and did; it can be continued.

    Args:
        message: what stopped it, and where its state is.
        number: of the signal; commands exit with 128 more, as shells do.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number

    def __reduce__(self) -> tuple[type[Stopped], tuple[str, int]]:
        return type(self), (str(self), self.exit_code - 128)

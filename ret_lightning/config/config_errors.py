"""Errors in a config, and helpers for their messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TypeAlias

from ret_lightning.errors import ConfigError

COMMAND_LINE = "command line: "

KeyedError: TypeAlias = tuple[str, ConfigError]  # a dotted key and the error in its value


@dataclass(frozen=True, eq=False)
class Problem:
    """One error in a config, with its source.

    Attributes:
        source: a file with its line (`conf/gate/lstm.yaml:4`) or `command line: <override as typed>`.
        key: the dotted key in the composed config; empty if the error has no key.
        error: the error, with its code and values.
    """

    source: str
    key: str
    error: ConfigError

    @property
    def code(self) -> str:
        """The code of the error."""
        return self.error.code

    def __str__(self) -> str:
        typed = self.source.removeprefix(COMMAND_LINE).lstrip("+~") if self.source.startswith(COMMAND_LINE) else ""
        is_repeated = typed.partition("=")[0] == self.key  # the override already starts with the key
        return ": ".join(part for part in (self.source, "" if is_repeated else self.key, str(self.error)) if part)


def format_problems(problems: Sequence[Problem], prog: str) -> str:
    """Format problems as a command prints them: a heading, then one line per problem."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return "\n".join([f"{prog}: {count} in the config:", *(f"  {problem}" for problem in problems)])


def exclusive_error(other: str) -> ConfigError:
    """Return the error of a key that cannot be set together with the key `other`."""
    return ConfigError(f"set it or {other}, not both", code="exclusive-settings", other=other)


def nearest(name: str, options: Iterable[str], count: int = 1, cutoff: float = 0.6) -> list[str]:
    """Return at most `count` options with a spelling similar to `name`, ignoring case, most similar first."""
    by_lower_case = {option.lower(): option for option in options}
    return [by_lower_case[match] for match in get_close_matches(name.lower(), by_lower_case, count, cutoff)]


def choices(name: object, options: Iterable[object]) -> str:
    """Return the end of a message about an unknown name: a suggestion and the available choices.

    Up to twelve options are listed in full; of more options, the three with the most similar spelling.
    """
    listed = list(dict.fromkeys(option if isinstance(option, str) else format_value(option) for option in options))
    if not listed:
        return ""
    if len(listed) <= 12:
        meant = nearest(str(name), listed)
        return (f"; did you mean {meant[0]}?" if meant else ";") + f" choices: {', '.join(listed)}"
    meant = nearest(str(name), listed, count=3)
    if meant:
        return f"; did you mean {' or '.join(meant)}?"
    return f"; nearest of {len(listed)}: {', '.join(nearest(str(name), listed, count=3, cutoff=0.0))}"


def format_value(value: object) -> str:
    """Format a config value: null, true and false as in YAML, others by `repr`, truncated to 60 characters."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

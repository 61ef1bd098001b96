"""What is wrong in a config, and the words in which it is told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeAlias

from ret_lightning.errors import ConfigError

COMMAND_LINE = "command line: "

Wrong: TypeAlias = tuple[str, ConfigError]  # a dotted key, and the error in its value


@dataclass(frozen=True, eq=False)
class Problem:
    """One error in a config, with its source.

    Attributes:
        source: a file with its line (`conf/gate/lstm.yaml:4`), or `command line: <the override as typed>`.
        key: the dotted key in the composed config; empty where there is none.
        error: what is wrong and how to fix it, with its code and values.
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
        said = typed.partition("=")[0] == self.key  # the override as typed begins with its key
        return ": ".join(part for part in (self.source, "" if said else self.key, str(self.error)) if part)


def report(problems: Sequence[Problem], prog: str) -> str:
    """All problems as a command prints them: a heading, and one line a problem."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return "\n".join([f"{prog}: {count} in the config:", *(f"  {problem}" for problem in problems)])


def exclusive(other: str) -> ConfigError:
    """The error of a key that may not be set together with another one."""
    return ConfigError(f"set it or {other}, not both", code="exclusive-settings", other=other)


def nearest(name: str, options: Iterable[str], count: int = 1, cutoff: float = 0.6) -> list[str]:
    """At most `count` of the options that are spelt like `name`, in any case, the nearest first."""
    written = {option.lower(): option for option in options}
    return [written[match] for match in get_close_matches(name.lower(), written, count, cutoff)]


def choices(name: Any, options: Iterable[Any]) -> str:
    """The end of a message about an unknown name: what was meant, perhaps, and what there is to choose from.

    All options where there are twelve or fewer, else the three that are spelt most like `name`.
    """
    listed = list(dict.fromkeys(option if isinstance(option, str) else show_value(option) for option in options))
    if not listed:
        return ""
    if len(listed) <= 12:
        meant = nearest(str(name), listed)
        return (f"; did you mean {meant[0]}?" if meant else ";") + f" choices: {', '.join(listed)}"
    meant = nearest(str(name), listed, count=3)
    if meant:
        return f"; did you mean {' or '.join(meant)}?"
    return f"; nearest of {len(listed)}: {', '.join(nearest(str(name), listed, count=3, cutoff=0.0))}"


def show_value(value: Any) -> str:
    """A config value as YAML would write it, shortened to fit in a line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

"""The command line's overrides: parsed one by one, and a sweep's values each as an override of its own."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, Quote, QuotedString, ValueType
from hydra.errors import HydraException

from ret_lightning.config.checker.yaml_files import first_line
from ret_lightning.config.config_errors import COMMAND_LINE, Problem
from ret_lightning.errors import ConfigError

# A character that Hydra's grammar takes within quotes only, or for syntax of its own: not one of these.
_REFUSED = re.compile(r"[^A-Za-z0-9_/\-\\+.$%*@?|: \t,\[\]{}]")
_ITEM = re.compile(r"[^\[\]{},:]+")  # of a list or mapping


@dataclass
class ParsedOverride(Override):
    """An override of Hydra's that knows where it was written."""

    source: str = ""

    @property
    def path(self) -> tuple[str, ...]:
        """The key that it sets, part by part."""
        return tuple(re.split(r"[.\[]", self.key_or_group.replace("]", "")))


def parse(lines: Sequence[str], sources: Sequence[str]) -> tuple[list[ParsedOverride], list[Problem]]:
    """The overrides that can be read, and a problem for each that cannot; each line with its source."""
    parser = OverridesParser.create()
    settings: list[ParsedOverride] = []
    problems: list[Problem] = []
    for line, source in zip(lines, sources, strict=True):
        try:
            settings += [ParsedOverride(**vars(override), source=source) for override in parser.parse_overrides([line])]
        except HydraException as error:
            problems.append(Problem(source, line.partition("=")[0].lstrip("+~"), _unreadable(line, error)))
    return settings, problems


def quoted_argument(line: str) -> str | None:
    """An override as one types it in a shell so that its value is taken as text: `'data.root="/data/Müller"'`.

    In a list or mapping the items are quoted. None where quotes do not help, as in keys.
    """
    key, equals, value = line.partition("=")
    if re.fullmatch(r"\[.*\]|\{.*\}", value):
        value = _ITEM.sub(lambda item: _quote(item[0]) if _REFUSED.search(item[0]) else item[0], value)
    else:
        value = _quote(value)
    typed = f"{key}={value}"
    return shlex.quote(typed) if equals and _is_readable(typed) else None


def _unreadable(line: str, error: HydraException) -> ConfigError:
    typed = quoted_argument(line)
    if typed is None:
        text = f"cannot be read as key=value ({first_line(error)})"
        return ConfigError(text, code="override-unreadable", found=line)
    special = _REFUSED.search(line.partition("=")[2])
    reason = f"{special[0]!r} needs quotes" if special else "the value cannot be read; text needs quotes"
    return ConfigError(f"{reason}; type {typed}", code="override-needs-quotes", found=line, expected=typed)


def _quote(value: str) -> str:
    return QuotedString(value, Quote.double).with_quotes()


def _is_readable(line: str) -> bool:
    try:
        OverridesParser.create().parse_overrides([line])
    except HydraException:
        return False
    return True


def on_command_line(line: str) -> str:
    """The source of an override that was typed."""
    return f"{COMMAND_LINE}{line}"


def variants(overrides: Sequence[ParsedOverride]) -> Iterator[list[ParsedOverride]]:
    """The overrides with each sweep at its first value, then once for each further value of each sweep."""
    values = [_values(override) for override in overrides]
    yield [inner[0] for inner in values if inner]
    for place, inner in enumerate(values):
        for value in inner[1:]:
            yield [value if at == place else others[0] for at, others in enumerate(values) if others]


def wrong_sweep(override: ParsedOverride, *, multirun: bool) -> Problem | None:
    """Why an override may not sweep, or None where it may or does not."""
    if not override.is_sweep_override():
        return None
    key, _, value = override.input_line.partition("=")
    if multirun and override.is_hydra_override():
        error = ConfigError("Hydra's own settings cannot be swept", code="sweep-of-hydra-settings")
        return Problem(override.source, key, error)
    if multirun:
        return None
    hint = ""
    if override.value_type == ValueType.SIMPLE_CHOICE_SWEEP:
        hint = (
            f"; for a list type {shlex.quote(f'{key}=[{value}]')}, for one text {quoted_argument(override.input_line)}"
        )
    error = ConfigError(f"several values need --multirun (-m){hint}", code="sweep-without-multirun", found=value)
    return Problem(override.source, key, error)


def _values(override: ParsedOverride) -> list[ParsedOverride]:
    """A sweep's values: all choices, the first of a range; the override itself where it is no sweep."""
    if not override.is_sweep_override():
        return [override]
    if isinstance(override.value(), IntervalSweep):
        values = [str(override.value().start)]
    elif override.value_type == ValueType.RANGE_SWEEP:
        values = [next(override.sweep_string_iterator())]
    else:
        values = list(override.sweep_string_iterator())
    lines = [f"{override.get_key_element()}={value}" for value in values]
    typed = override.source.startswith(COMMAND_LINE)
    return parse(lines, [on_command_line(line) if typed else override.source for line in lines])[0]

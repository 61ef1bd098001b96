"""Overrides of the command line, parsed one by one, and expansion of sweeps to single values."""

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

# Characters that Hydra's grammar allows only within quotes or as syntax.
_REFUSED = re.compile(r"[^A-Za-z0-9_/\-\\+.$%*@?|: \t,\[\]{}]")
_ITEM = re.compile(r"[^\[\]{},:]+")  # item of a list or mapping


@dataclass
class ParsedOverride(Override):
    """A Hydra override with the source it was read from."""

    input_line: str = ""  # not None once parsed
    source: str = ""

    @property
    def path(self) -> tuple[str, ...]:
        """The parts of the key that the override sets."""
        return tuple(re.split(r"[.\[]", self.key_or_group.replace("]", "")))


def parse(lines: Sequence[str], sources: Sequence[str]) -> tuple[list[ParsedOverride], list[Problem]]:
    """Parse override lines.

    Args:
        lines: overrides as typed.
        sources: the source of each line.

    Returns:
        The parsed overrides, and a problem for each line that cannot be parsed.
    """
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
    """Quote an override for a shell so that its value is read as a string: `'data.root="/data/Müller"'`.

    The items of a list or mapping are quoted one by one. Returns None if quotes do not help, for instance in keys.
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
        text = f"expected key=value ({first_line(error)})"
        return ConfigError(text, code="override-unreadable", found=line)
    special = _REFUSED.search(line.partition("=")[2])
    reason = f"{special[0]!r} must be quoted" if special else "the value cannot be parsed; strings must be quoted"
    return ConfigError(f"{reason}; use {typed}", code="override-needs-quotes", found=line, expected=typed)


def _quote(value: str) -> str:
    return QuotedString(value, Quote.double).with_quotes()


def _is_readable(line: str) -> bool:
    try:
        OverridesParser.create().parse_overrides([line])
    except HydraException:
        return False
    return True


def command_line_source(line: str) -> str:
    """Return the source of an override typed on the command line."""
    return f"{COMMAND_LINE}{line}"


def expand_sweeps(overrides: Sequence[ParsedOverride]) -> Iterator[list[ParsedOverride]]:
    """Yield the overrides with each sweep at its first value, then once for each further value of each sweep."""
    values = [_sweep_values(override) for override in overrides]
    yield [inner[0] for inner in values if inner]
    for index, inner in enumerate(values):
        for value in inner[1:]:
            yield [value if other == index else options[0] for other, options in enumerate(values) if options]


def check_sweep(override: ParsedOverride, *, multirun: bool) -> Problem | None:
    """Return the problem of a sweep that is not allowed; None if the override is allowed or not a sweep."""
    if not override.is_sweep_override():
        return None
    key, _, value = override.input_line.partition("=")
    if multirun and override.is_hydra_override():
        error = ConfigError("settings of Hydra cannot be swept", code="sweep-of-hydra-settings")
        return Problem(override.source, key, error)
    if multirun:
        return None
    hint = ""
    if override.value_type == ValueType.SIMPLE_CHOICE_SWEEP:
        hint = (
            f"; for a list use {shlex.quote(f'{key}=[{value}]')}, for a string {quoted_argument(override.input_line)}"
        )
    error = ConfigError(f"several values require --multirun (-m){hint}", code="sweep-without-multirun", found=value)
    return Problem(override.source, key, error)


def _sweep_values(override: ParsedOverride) -> list[ParsedOverride]:
    """Return a sweep's values as overrides: all choices, or the first value of a range; a single value unchanged."""
    if not override.is_sweep_override():
        return [override]
    swept = override.value()
    if isinstance(swept, IntervalSweep):
        values = [str(swept.start)]
    elif override.value_type == ValueType.RANGE_SWEEP:
        values = [next(override.sweep_string_iterator())]
    else:
        values = list(override.sweep_string_iterator())
    lines = [f"{override.get_key_element()}={value}" for value in values]
    typed = override.source.startswith(COMMAND_LINE)
    return parse(lines, [command_line_source(line) if typed else override.source for line in lines])[0]

"""The command line's overrides: parsed one by one, and a sweep's values each as an override of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, ValueType
from hydra.errors import HydraException

from ret_lightning.config.files import first_line
from ret_lightning.config.mistakes import COMMAND_LINE, Mistake
from ret_lightning.errors import ConfigError


@dataclass
class Setting(Override):
    """An override of Hydra's that knows where it was written."""

    source: str = ""

    @property
    def path(self) -> tuple[str, ...]:
        """The key that it sets, part by part."""
        return tuple(re.split(r"[.\[]", self.key_or_group.replace("]", "")))


def parse(lines: Sequence[str], sources: Sequence[str]) -> tuple[list[Setting], list[Mistake]]:
    """The overrides that can be read, and a mistake for each that cannot; each line with its source."""
    parser = OverridesParser.create()
    settings: list[Setting] = []
    mistakes: list[Mistake] = []
    for line, source in zip(lines, sources, strict=True):
        try:
            settings += [Setting(**vars(override), source=source) for override in parser.parse_overrides([line])]
        except HydraException as error:
            wrong = ConfigError(
                f"cannot be read as key=value ({first_line(error)}); text with special characters needs quotes",
                code="override-unreadable",
                found=line,
            )
            mistakes.append(Mistake(source, "", wrong))
    return settings, mistakes


def on_command_line(line: str) -> str:
    """The source of an override that was typed."""
    return f"{COMMAND_LINE}{line}"


def variants(overrides: Sequence[Setting]) -> Iterator[list[Setting]]:
    """The overrides with each sweep at its first value, then once for each further value of each sweep."""
    values = [_values(override) for override in overrides]
    yield [inner[0] for inner in values if inner]
    for place, inner in enumerate(values):
        for value in inner[1:]:
            yield [value if at == place else others[0] for at, others in enumerate(values) if others]


def wrong_sweep(override: Setting, *, multirun: bool) -> Mistake | None:
    """Why an override may not sweep, or None where it may or does not."""
    if not override.is_sweep_override():
        return None
    key, _, value = override.input_line.partition("=")
    if multirun and override.is_hydra_override():
        error = ConfigError("Hydra's own settings cannot be swept", code="sweep-of-hydra-settings")
        return Mistake(override.source, key, error)
    if multirun:
        return None
    hint = f"; for a list write {key}=[{value}]" if override.value_type == ValueType.SIMPLE_CHOICE_SWEEP else ""
    error = ConfigError(f"several values need --multirun (-m){hint}", code="sweep-without-multirun", found=value)
    return Mistake(override.source, key, error)


def _values(override: Setting) -> list[Setting]:
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

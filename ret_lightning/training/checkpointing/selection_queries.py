"""Values of `selected_on`: the queries on which the checkpoint of a run was selected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

SELECTED_ON = "selected_on"  # key of origin.json
_DESCRIPTIONS = {"val": "validation queries", "holdout": "held-out training rows", "test": "the test queries"}
LAST = "last"  # the last checkpoint, without a selection
UNKNOWN = "unknown"  # not recorded by the version that wrote the run


def from_sources(sources: Iterable[str]) -> str:
    """Return the value of `selected_on` for the sources of the validation queries.

    Args:
        sources: `val`, `holdout` or `test`, of each subset.

    Returns:
        The distinct sources, joined by +.
    """
    return "+".join(dict.fromkeys(sources))


def from_run(origin: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Return the value of `selected_on` of a run.

    Args:
        origin: content of the run's `origin.json`. If it has no value, which is the case for earlier versions, the
            value is derived from the config.
        config: the run's config.
    """
    if SELECTED_ON in origin:
        return str(origin[SELECTED_ON])
    data = config.get("data") or {}
    if config.get("test_with") == "last" or not (config.get("callbacks") or {}).get("checkpoint"):
        return LAST
    if str(data.get("_target_", "")).endswith("GlyphsDataModule"):
        return "val"
    validation = data.get("validation")
    return str(validation) if validation in _DESCRIPTIONS else UNKNOWN


def describe(value: str) -> str:
    """Describe a value of `selected_on` for tables, as text after "checkpoint:"."""
    if value == LAST:
        return "last, none was selected"
    if value == UNKNOWN:
        return "selected on unknown queries (not recorded)"
    return f"selected on {' and '.join(_DESCRIPTIONS.get(part, part) for part in value.split('+'))}"

"""On which queries a run's checkpoint was chosen, as `origin.json` and every table state it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

KEY = "selected_on"  # in origin.json
_WORDS = {"val": "validation queries", "holdout": "held-out training rows", "test": "the test queries"}
LAST = "last"  # no checkpoint was chosen: the weights are the last ones
UNKNOWN = "unknown"  # a run of a version that did not record it


def of_sources(sources: Iterable[str]) -> str:
    """The value for `origin.json`: the distinct sources of the validation queries, `val`, `holdout` or `test`, joined by +."""
    return "+".join(dict.fromkeys(sources))


def of_run(origin: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The value of a run, as recorded, or for an earlier version as far as its config decides it.

    Args:
        origin: the run's `origin.json`.
        config: the run's config.
    """
    if KEY in origin:
        return str(origin[KEY])
    data = config.get("data") or {}
    if config.get("test_with") == "last" or not (config.get("callbacks") or {}).get("checkpoint"):
        return LAST
    if str(data.get("_target_", "")).endswith("GlyphsDataModule"):
        return "val"
    return data.get("validation") if data.get("validation") in _WORDS else UNKNOWN


def in_words(value: str) -> str:
    """The value as tables state it, after "checkpoint:"."""
    if value == LAST:
        return "the last one, none was chosen"
    if value == UNKNOWN:
        return "chosen on queries that were not recorded"
    return f"chosen on {' and '.join(_WORDS.get(part, part) for part in value.split('+'))}"

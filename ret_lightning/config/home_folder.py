"""Expansion of `~` in the values of a config, on the command line and in files."""

from __future__ import annotations

import os
import re
from collections.abc import Collection

from omegaconf import DictConfig, ListConfig, OmegaConf, read_write

from ret_lightning.config.nodes import child_keys

TEXTS = ("query",)  # options that are never paths

_OVERRIDE = re.compile(r"(?P<key>[^=~][^=]*)=(?P<quote>[\"']?)(?P<home>~\w*)(?=/|[\"']?$)")


def expand_override(line: str, verbatim: Collection[str] = ()) -> str:
    """Expand `~` and `~user` at the start of an override's value: `output="~/x"` becomes `output="/home/me/x"`.

    Args:
        line: the override as typed.
        verbatim: keys whose values Hydra does not parse; quotes around their values are removed here.

    Returns:
        The override with the path expanded, or `line` unchanged.
    """
    found = _OVERRIDE.match(line)
    if found is None or found["key"] in TEXTS:
        return line
    quote, rest = found["quote"], line[found.end() :]
    if quote and rest.endswith(quote) and found["key"] in verbatim:
        quote, rest = "", rest[:-1]
    return f"{found['key']}={quote}{os.path.expanduser(found['home'])}{rest}"


def expand_config(config: DictConfig | ListConfig) -> None:
    """Expand `~` and `~user` at the start of every value of a composed config, in place."""
    with read_write(config):
        for key in child_keys(config):
            if OmegaConf.is_missing(config, key) or OmegaConf.is_interpolation(config, key):
                continue
            value = config[key]
            if isinstance(value, DictConfig | ListConfig):
                expand_config(value)
            elif isinstance(value, str) and value.startswith("~") and key not in TEXTS:
                config[key] = os.path.expanduser(value)

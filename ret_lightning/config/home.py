"""`~` in the paths of a config: the home folder, on the command line and in files, quoted or not."""

from __future__ import annotations

import os
import re

from omegaconf import DictConfig, ListConfig, OmegaConf, read_write

TEXTS = ("query",)  # options that are no paths, whatever they begin with

_OVERRIDE = re.compile(r"(?P<key>[^=~][^=]*)=(?P<quote>[\"']?)(?P<home>~\w*)(?=/|[\"']?$)")


def expand_override(line: str) -> str:
    """Expand `~` and `~user` at the start of an override's value: `output="~/x"` becomes `output="/home/me/x"`."""
    found = _OVERRIDE.match(line)
    if found is None or found["key"] in TEXTS:
        return line
    return f"{found['key']}={found['quote']}{os.path.expanduser(found['home'])}{line[found.end() :]}"


def expand_config(config: DictConfig | ListConfig) -> None:
    """Expand `~` and `~user` at the start of every value of a composed config, in place."""
    with read_write(config):
        for key in config if isinstance(config, DictConfig) else range(len(config)):
            if OmegaConf.is_missing(config, key) or OmegaConf.is_interpolation(config, key):
                continue
            value = config[key]
            if isinstance(value, DictConfig | ListConfig):
                expand_config(value)
            elif isinstance(value, str) and value.startswith("~") and key not in TEXTS:
                config[key] = os.path.expanduser(value)

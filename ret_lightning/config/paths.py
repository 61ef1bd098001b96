"""Conversion of the paths in a config to absolute paths, so that a run can be resumed from any working folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

# Keys; * matches any key. Paths below data.root, such as data.image_folder, stay relative to it.
PATHS = (
    "data.root", "data.cache_dir", "data.layout.root", "data.layout.cache_dir", "logger.*.save_dir",
    "callbacks.*.dirpath", "callbacks.*.file", "callbacks.*.folder",
    "trainer.default_root_dir",
)  # fmt: skip
# Paths or hub ids: a value is a path if it exists or starts with a dot.
PATHS_OR_IDS = ("init_from", "checkpoint", "backbone.pretrained", "model.backbone.pretrained")


def make_paths_absolute(config: DictConfig, base: str | Path | None = None) -> None:
    """Make the paths of a config absolute, in place. Interpolations are unchanged.

    Args:
        config: config of a training run or an evaluation.
        base: folder that relative paths refer to; None: the working folder.
    """
    base = Path.cwd() if base is None else base
    with open_dict(config):
        for patterns, are_paths in ((PATHS, True), (PATHS_OR_IDS, False)):
            for node, key in (found for pattern in patterns for found in _nodes(config, pattern.split("."))):
                value = node[key]
                if not isinstance(value, str) or not value or "://" in value:
                    continue
                path = os.path.normpath(os.path.join(base, os.path.expanduser(value)))
                if are_paths or value.startswith((".", "~")) or os.path.exists(path):
                    node[key] = path


def _nodes(node: Any, keys: Sequence[str]) -> Iterator[tuple[DictConfig, str]]:
    """Yield the node and the key of each value that matches a pattern and is not an interpolation."""
    if not isinstance(node, DictConfig):
        return
    first, *rest = keys
    for key in list(node) if first == "*" else [first]:
        if key not in node or OmegaConf.is_interpolation(node, key) or OmegaConf.is_missing(node, key):
            continue
        if rest:
            yield from _nodes(node[key], rest)
        else:
            yield node, key

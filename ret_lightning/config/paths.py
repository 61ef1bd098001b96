"""Paths of a config made absolute, so that a run can be resumed from any working folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

# Keys; * is any key. What lies below data.root (data.image_folder, say) stays relative to it.
PATHS = (
    "data.root", "data.cache_dir", "data.layout.root", "data.layout.cache_dir", "logger.*.save_dir",
    "callbacks.*.dirpath", "callbacks.*.file", "callbacks.*.folder",
    "trainer.default_root_dir",
)  # fmt: skip
# Paths or hub ids: a path is what exists or begins with a dot.
PATHS_OR_IDS = ("init_from", "checkpoint", "backbone.pretrained", "model.backbone.pretrained")


def make_paths_absolute(config: DictConfig, base: str | Path | None = None) -> None:
    """Make the paths of a config absolute, in place; interpolations are unchanged.

    Args:
        config: of a run or an evaluation.
        base: what relative paths are relative to; None: the working folder.
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
    """The nodes that have a key of their own, not an interpolation, at a pattern."""
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

"""Typed access to nodes of OmegaConf, whose own annotations list every kind of content."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:  # imported in the function: an index without a config does not need OmegaConf
    from omegaconf import DictConfig, ListConfig


def to_plain(config: DictConfig, *, resolve: bool = False) -> dict[str, Any]:
    """Return a copy of a config as dicts and lists, with interpolations resolved or as they are written."""
    from omegaconf import OmegaConf

    return cast("dict[str, Any]", OmegaConf.to_container(config, resolve=resolve))


def child_keys(node: DictConfig | ListConfig) -> list[Any]:
    """Return the keys of a mapping, or the positions of a list."""
    from omegaconf import DictConfig

    return list(node) if isinstance(node, DictConfig) else list(range(len(node)))

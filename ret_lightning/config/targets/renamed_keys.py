"""Earlier names of options: accepted with a warning until version 0.3, and without one in stored runs and saved indexes."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ret_lightning.config.nodes import child_keys, to_plain
from ret_lightning.runtime.deprecation import deprecation

if TYPE_CHECKING:  # imported in the functions: an index without a config does not need OmegaConf
    from omegaconf import DictConfig, ListConfig

F = TypeVar("F", bound=Callable[..., Any])

# Replaced by FAISS's own names on 2026-12-01.
FAISS_KEYS = {
    "cells": "nlist", "probes": "nprobe", "codes": "m", "bits": "nbits", "links": "M", "sample": "training_points",
}  # fmt: skip
# For each `_target_`, earlier to current option names. They are also placeholders in strings: `IVF{cells},Flat`.
RENAMED_KEYS: dict[str, dict[str, str]] = {
    "ret_lightning.retrieval.FaissIndex": FAISS_KEYS,
    "ret_lightning.retrieval.MuveraIndex": {key: FAISS_KEYS[key] for key in ("cells", "probes", "sample")},
    "ret_lightning.evaluation.RetrievalEvaluation": {"agreement_sample": "ann_recall_sample"},
}
# Config keys that moved to another node.
MOVED_KEYS = {"loss.micro_batch": "micro_batch"}
METRIC_OPTIONS = ("metric", "monitor")  # options whose value is a metric
# Earlier names of metrics: `mean/headline_recall`, `index/agreement@10`, `index/recall_cost@5`, `val/seconds/agreement`.
_EARLIER_METRICS = (
    (re.compile(r"\bheadline_(?=(?:pseudo_)?recall\b)"), "main_"),
    (re.compile(r"(?<=/)agreement(?=(?:_without_fallback)?@\d)|(?<=/seconds/)agreement\Z"), "ann_recall"),
    (re.compile(r"(?<=/)recall_cost(?=(?:_without_fallback)?@\d)"), "recall_loss"),
)
EARLIER = frozenset(key for keys in RENAMED_KEYS.values() for key in keys)
_OVERRIDE = re.compile(r"(~|\+{0,2})([\w.]+)\.(\w+)(=.*)?", re.DOTALL)


def renamed_keys_of(target: Any) -> Mapping[str, str]:
    """Return the mapping of earlier to current option names of a `_target_`."""
    from ret_lightning.config.targets.target_aliases import current_target

    return RENAMED_KEYS.get(current_target(target), {}) if isinstance(target, str) else {}


def current_metric(name: str) -> str:
    """Return the current name of a metric: `val/mean/headline_recall` -> `val/mean/main_recall`."""
    for earlier, current in _EARLIER_METRICS:
        name = earlier.sub(current, name)
    return name


def current_settings(settings: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    """Return settings with current keys.

    If both names of an option are set, the current name takes precedence unless its value is None.

    Args:
        settings: keyword arguments or the keys of a config node.
        keys: mapping of earlier to current names.
    """
    current = {key: value for key, value in settings.items() if key not in keys}
    for key, value in settings.items():
        if key in keys and current.get(keys[key]) is None:
            current[keys[key]] = value
    return {key: _rename_placeholders(value, keys) for key, value in current.items()}


def current_keys(value: Any) -> Any:
    """Return a plain config with current option names and metric names in all nodes."""
    if isinstance(value, list):
        return [current_keys(item) for item in value]
    if not isinstance(value, dict):
        return value
    node = {key: current_keys(item) for key, item in value.items()}
    node |= {key: current_metric(node[key]) for key in METRIC_OPTIONS if isinstance(node.get(key), str)}
    keys = renamed_keys_of(node.get("_target_"))
    return current_settings(node, keys) if keys else node


def current_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plain config of a run with current keys, including keys that moved to another node."""
    current = current_keys(dict(config))
    for earlier, key in MOVED_KEYS.items():
        above, _, name = earlier.rpartition(".")
        node = current.get(above)
        if isinstance(node, dict) and name in node:
            current[above] = {k: v for k, v in node.items() if k != name}
            if current.get(key) is None:
                current[key] = node[name]
    return current


def update_keys(config: DictConfig | ListConfig) -> list[str]:
    """Replace earlier keys in a config, at any depth and in place, without resolving interpolations.

    Returns:
        One deprecation message per replaced key.
    """
    from omegaconf import DictConfig, ListConfig, open_dict, read_write

    if config._is_none() or config._is_missing() or config._is_interpolation():
        return []
    found = _update_moved(config) if isinstance(config, DictConfig) and config._get_parent() is None else []
    found += _update_metrics(config) if isinstance(config, DictConfig) else []
    for key in child_keys(config):
        if isinstance(node := config._get_node(key), DictConfig | ListConfig):
            found += update_keys(node)
    if not isinstance(config, DictConfig) or "_target_" not in config:
        return found
    target: Any = config._get_node("_target_")
    keys = renamed_keys_of(target._value())
    if not keys:
        return found
    before = to_plain(config)
    current = current_settings(before, keys)
    with read_write(config), open_dict(config):
        for key in before.keys() - current.keys():
            found.append(deprecation(config._get_full_key(key), config._get_full_key(keys[key])))
            config.pop(key)
        for key in [key for key in current if current[key] != before.get(key)]:
            if key in before and key not in keys.values():  # a string with placeholders
                found.append(deprecation(f"{config._get_full_key(key)}={before[key]}", current[key]))
            config[key] = current[key]
    return found


def is_earlier(line: str) -> bool:
    """Return whether the last part of an override's key is an earlier option name."""
    found = _OVERRIDE.fullmatch(line)
    return found is not None and (found[3] in EARLIER or f"{found[2]}.{found[3]}" in MOVED_KEYS)


def current_override(line: str, config: DictConfig | None) -> str:
    """Return an override with the current key; overrides of other keys are returned unchanged.

    Args:
        line: the override, `retrieval.cells=64`.
        config: the config that the override applies to; None if it could not be composed.
    """
    from omegaconf import DictConfig, OmegaConf

    found = _OVERRIDE.fullmatch(line)
    if config is None or found is None or not is_earlier(line):
        return line
    sign, path, name, value = found.groups(default="")
    if moved := MOVED_KEYS.get(f"{path}.{name}"):
        return f"{sign if sign == '~' else '' if moved in config else '++'}{moved}{value}"
    node = OmegaConf.select(config, path)
    current = (
        renamed_keys_of(node["_target_"]).get(name) if isinstance(node, DictConfig) and "_target_" in node else None
    )
    if current is None:
        return line
    return f"{sign if sign == '~' else '' if current in node else '++'}{path}.{current}{value}"


def _update_metrics(config: DictConfig) -> list[str]:
    from omegaconf import read_write

    found = []
    for option in METRIC_OPTIONS:
        node = config._get_node(option) if option in config else None
        metric = node._value() if node is not None else None
        if isinstance(metric, str) and (current := current_metric(metric)) != metric:
            with read_write(config):
                config[option] = current
            found.append(deprecation(f"{config._get_full_key(option)}={metric}", current))
    return found


def _update_moved(config: DictConfig) -> list[str]:
    from omegaconf import DictConfig, open_dict, read_write

    found = []
    for earlier, key in MOVED_KEYS.items():
        above, _, name = earlier.rpartition(".")
        node = config._get_node(above) if above in config else None
        if not isinstance(node, DictConfig) or node._is_interpolation() or node._is_none() or name not in node:
            continue
        with read_write(config), open_dict(config):
            value = node.pop(name)
            if config.get(key) is None:
                config[key] = value
        found.append(deprecation(earlier, key))
    return found


def accept_renamed(keys: Mapping[str, str]) -> Callable[[F], F]:
    """Return a decorator for constructors that accept earlier names of keyword arguments, with a FutureWarning.

    Args:
        keys: mapping of earlier to current names.
    """

    def decorate(function: F) -> F:
        known = inspect.signature(function).parameters
        earlier = {key: new for key, new in keys.items() if key not in known and new in known}

        @wraps(function)
        def accepting(self: Any, *args: Any, **kwargs: Any) -> None:
            for key in kwargs.keys() & earlier.keys():
                warnings.warn(deprecation(key, earlier[key]), FutureWarning, stacklevel=2)
            function(
                self, *(_rename_placeholders(value, earlier) for value in args), **current_settings(kwargs, earlier)
            )

        return cast(F, accepting)

    return decorate


def _rename_placeholders(value: Any, keys: Mapping[str, str]) -> Any:
    if not isinstance(value, str):
        return value
    return re.sub(r"(?<!\$)\{(\w+)\}", lambda found: f"{{{keys.get(found[1], found[1])}}}", value)

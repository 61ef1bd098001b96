"""Identity of a run: the part of its resolved config that decides its result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from omegaconf import DictConfig

from ret_lightning.config.nodes import to_plain
from ret_lightning.config.targets.renamed_keys import current_config
from ret_lightning.config.targets.target_aliases import current_target

# Keys that decide the location, speed and logging of a run, but not its result.
NOT_IDENTITY = (
    "output_dir", "resume", "dry_run", "sweep", "logger", "data.num_workers", "trainer.enable_progress_bar", "linear_backend",
    "callbacks.loss_curve",  # since 0.2.0
)  # fmt: skip

ABSENT = "absent"

# Keys that earlier versions do not write, with their default: a config without the key describes the same run.
OPTIONAL: dict[str, Any] = {
    "init_partial": False,
    "micro_batch": None,
    "linear_backend": "auto",
    "data.shared_passage_ids": False,
    "data.columns": [],
    "data.passage_columns": [],
    "data.holdout_rows": 1000,
    "data.holdout_fraction": 0.02,
    "retrieval.exact_fallback": True,
    "evaluation.index.exact_fallback": True,
    "callbacks.checkpoint.save_last": False,
    "callbacks.checkpoint.enable_version_counter": False,
}


def flatten(config: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """Flatten a config to dotted keys. Lists are values, and the run folder is replaced by `${output_dir}`.

    Args:
        config: config of a run, with `output_dir`; interpolations are resolved.

    Returns:
        Dotted keys to values, with current key names and without optional keys that have their default.
    """
    content = to_plain(config, resolve=True) if isinstance(config, DictConfig) else config
    leaves = dict(_leaves(current_config(content), str(content["output_dir"]), ""))
    return {key: value for key, value in leaves.items() if key not in OPTIONAL or value != OPTIONAL[key]}


def run_identity(config: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """Return the flattened config of a run without the keys that do not affect its result."""
    return {key: value for key, value in flatten(config).items() if not is_within(key, NOT_IDENTITY)}


def is_within(key: str, nodes: Iterable[str]) -> bool:
    """Return whether a dotted key is one of the nodes or below one of them."""
    return any(key == node or key.startswith(f"{node}.") for node in nodes)


def config_fingerprint(config: Mapping[str, Any]) -> str:
    """Return the first 12 hexadecimal digits of the SHA-256 of a flattened config."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the keys at which two flattened configs differ, with both values."""
    pairs = {key: (one.get(key, ABSENT), other.get(key, ABSENT)) for key in {**one, **other}}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _leaves(value: Any, folder: str, key: str) -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict) and (value or not key):
        for name, item in value.items():
            yield from _leaves(item, folder, f"{key}.{name}" if key else str(name))
        return
    if isinstance(value, str) and (value == folder or value.startswith(f"{folder}/")):
        value = "${output_dir}" + value[len(folder) :]
    yield key, current_target(value) if key.endswith("_target_") else value

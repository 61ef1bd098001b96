"""When two configs are of one run: resolved, folders aside, and without what only says how it is told of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ret_lightning.config.targets.renamed_keys import current_config
from ret_lightning.config.targets.target_aliases import current_target

# Keys that say where a run is, how quickly it goes and what is told of it; not what it is.
BESIDE_THE_RUN = (
    "output_dir", "resume", "dry_run", "sweep", "logger", "data.num_workers", "trainer.enable_progress_bar", "linear_backend",
)  # fmt: skip

ABSENT = "absent"

# Keys that not every version writes, with the value that a config without them means: both are the same run.
OPTIONAL = {
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


def flat(config: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys to values; lists are values, and the run's own folder reads alike in all runs.

    Args:
        config: of a run, with `output_dir`; interpolations are resolved.
    """
    content = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else config
    leaves = dict(_leaves(current_config(content), str(content["output_dir"]), ""))
    return {key: value for key, value in leaves.items() if key not in OPTIONAL or value != OPTIONAL[key]}


def of_the_run(config: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """What a run is: its flat config without the keys that are beside it."""
    return {key: value for key, value in flat(config).items() if not within(key, BESIDE_THE_RUN)}


def within(key: str, nodes: Iterable[str]) -> bool:
    """Whether a dotted key is one of these, or below one of them."""
    return any(key == node or key.startswith(f"{node}.") for node in nodes)


def config_fingerprint(config: Mapping[str, Any]) -> str:
    """Of a flat config, the first 12 hexadecimal digits of a SHA-256."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys at which two flat configs differ, with the value of each."""
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

"""Config of a resumed run: the config stored in its folder, and the keys that the command line may change.

A resumed run keeps all settings that affect optimization: rows and their order, model, loss, optimizer, scheduler, precision,
clipping, accumulation, batch size and seed. It may change the training length, logging, devices, data location, data loading
and evaluation. Other changes are refused; `init_from` starts a new run from the weights. This module does not import torch, so
that a refusal is fast.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ret_lightning.config.checker.config_changes import StoredConfig
from ret_lightning.config.config_errors import KeyedError
from ret_lightning.config.nodes import to_plain
from ret_lightning.config.paths import make_paths_absolute
from ret_lightning.config.targets.renamed_keys import current_config
from ret_lightning.config.targets.target_aliases import current_target
from ret_lightning.errors import ConfigError
from ret_lightning.runs.identity import differences, flatten, is_within
from ret_lightning.runtime.run_layout import CONFIG_FILE, METRICS_FILE

# Keys and nodes that a resumed run may change.
MAY_CHANGE = {
    "training length": (
        "trainer.max_epochs", "trainer.max_steps", "trainer.min_epochs", "trainer.min_steps", "trainer.max_time",
        "scheduler.horizon_steps", "scheduler.horizon_epochs",
    ),
    "logging and callbacks": (
        "logger", "callbacks", "sweep", "trainer.log_every_n_steps", "trainer.enable_progress_bar",
        "trainer.enable_model_summary", "trainer.profiler", "trainer.detect_anomaly", "on_nonfinite",
    ),
    "devices": (
        "trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.benchmark",
        "trainer.deterministic", "trainer.sync_batchnorm", "compile", "linear_backend",
        "loss.backend", "micro_batch",
    ),
    "data location": (
        "data.root", "data.train_folder", "data.val_folder", "data.test_folder", "data.passages_folder",
        "data.image_folder", "data.cache_dir", "data.layout.root", "data.layout.cache_dir",
    ),
    "data loading": (
        "data.num_workers", "data.generation_workers", "data.eval_batch_size", "data.on_bad_row", "data.max_bad_fraction",
    ),
    "evaluation": (
        "evaluation", "retrieval", "test_with", "data.validation_pool", "trainer.limit_val_batches",
        "trainer.limit_test_batches", "trainer.val_check_interval", "trainer.check_val_every_n_epoch",
        "trainer.num_sanity_val_steps",
    ),
}  # fmt: skip

_ALLOWED = tuple(key for keys in MAY_CHANGE.values() for key in keys)
_COMMAND_KEYS = ("resume", "output_dir")
_RENAMED_TARGETS = {
    "lightning.pytorch.callbacks.ModelCheckpoint": "ret_lightning.training.checkpointing.BestCheckpoint",
}
# Nodes that are interpolations of another node in the original config: they follow its changes.
_SAME_AS = {"evaluation.index": "retrieval"}


def folder_to_resume(overrides: Sequence[str]) -> Path | None:
    """Return the run folder that a command line resumes; None for a new run and for `resume=auto`."""
    value = None
    for override in _parse(overrides):
        if override.key_or_group == "resume" and not override.is_delete():
            value = override.value()
    if not isinstance(value, str) or value == "auto" or not value:
        return None
    return Path(os.path.abspath(Path(value).expanduser()))


def resumed_base(overrides: Sequence[str]) -> StoredConfig | None:
    """Return the stored config that the overrides of a command line apply to; None if no folder is resumed.

    Args:
        overrides: overrides of the command line, as typed.

    Raises:
        ConfigError: if the folder does not contain a run, or `output_dir` names another folder.
    """
    folder = folder_to_resume(overrides)
    if folder is None:
        return None
    for override in _parse(overrides):
        key = override.key_or_group
        if key == "output_dir" and os.path.abspath(Path(str(override.value())).expanduser()) != str(folder):
            raise ConfigError(
                f"output_dir={override.value()}: expected the resumed folder {folder}; remove output_dir",
                code="resume-other-output-dir",
                folder=str(folder),
                found=str(override.value()),
            )
    config = stored_config(folder)
    config.resume = str(folder)
    return StoredConfig(config, folder / CONFIG_FILE, _COMMAND_KEYS, _find_refused)


def stored_config(folder: Path) -> DictConfig:
    """Load the config of a run.

    The path of the run folder is replaced by its current path, and names of earlier versions by current names.

    Args:
        folder: run folder.

    Raises:
        ConfigError: if the folder does not contain a run, or its config cannot be read.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise ConfigError(
            f"resume={folder}: expected a run folder, but {CONFIG_FILE} is missing",
            code="resume-no-run",
            folder=str(folder),
        )
    try:
        config: Any = OmegaConf.load(file)
        plain = to_plain(config)
        former = str(plain["output_dir"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"{file}: cannot read the config of the run ({reason})", code="resume-config-unreadable", path=str(file)
        ) from error
    plain = upgrade_validation(current_config(_update_targets(_replace_folder(plain, former, str(folder)))))
    for key, other in _SAME_AS.items():
        above, _, name = key.rpartition(".")
        if isinstance(plain.get(above), dict) and plain[above].get(name) == plain.get(other) is not None:
            plain[above][name] = f"${{{other}}}"
    config = OmegaConf.create(plain)
    make_paths_absolute(config, _first_working_folder(folder))
    return config


def _first_working_folder(folder: Path) -> str | None:
    """Return the working folder of a run's first start, the base of relative paths in earlier versions; None if unknown."""
    file = folder / ".hydra" / "hydra.yaml"
    try:
        return OmegaConf.select(OmegaConf.load(file), "hydra.runtime.cwd") if file.is_file() else None
    except (OSError, yaml.YAMLError, OmegaConfBaseException):
        return None


def refuse_finished(folder: Path, config: DictConfig) -> None:
    """Raise ConfigError if the run in a folder is finished and `config` does not change it."""
    if (folder / METRICS_FILE).exists() and not _find_changes(stored_config(folder), config):
        raise ConfigError(
            f"resume={folder}: the run is finished ({METRICS_FILE} exists); to extend it, change a setting such as "
            "trainer.max_epochs=20",
            code="resume-finished",
            folder=str(folder),
        )


def _find_changes(before: DictConfig, after: DictConfig) -> dict[str, tuple[Any, Any]]:
    found = differences(flatten(before), flatten(after))
    return {key: pair for key, pair in found.items() if not is_within(key, _COMMAND_KEYS)}


def _find_refused(before: DictConfig, after: DictConfig) -> Iterator[KeyedError]:
    """Yield each key that may not change, with the error."""
    for key, (stored, now) in _find_changes(before, after).items():
        if not is_within(key, _ALLOWED):
            text = (
                f"expected {stored} (stored), got {now}; a resumed run may change only {', '.join(MAY_CHANGE)}; for other "
                "changes, start a new run with init_from=<run folder>"
            )
            yield (
                key,
                ConfigError(text, code="resume-setting-fixed", stored=stored, found=now, allowed=tuple(MAY_CHANGE)),
            )


def _parse(overrides: Sequence[str]) -> list[Any]:
    parser, parsed = OverridesParser.create(), []
    for line in overrides:
        try:
            parsed += parser.parse_overrides([line])
        except HydraException:
            continue  # reported by the check of the config
    return parsed


def _replace_folder(value: Any, old: str, new: str) -> Any:
    """Replace a folder at the start of all strings of a config."""
    if isinstance(value, dict):
        return {key: _replace_folder(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [_replace_folder(item, old, new) for item in value]
    if isinstance(value, str) and (value == old or value.startswith(f"{old}/")):
        return new + value[len(old) :]
    return value


def upgrade_validation(config: dict[str, Any]) -> dict[str, Any]:
    """Convert the config of a version before data.validation=holdout, whose `auto` used test queries if val had no file."""
    data = config.get("data")
    if isinstance(data, dict) and data.get("validation") == "auto" and "holdout_rows" not in data:
        return {**config, "data": {**data, "validation": "val_or_test"}}
    return config


def _update_targets(value: Any) -> Any:
    """Replace targets of earlier versions by their current names."""
    if isinstance(value, list):
        return [_update_targets(item) for item in value]
    if not isinstance(value, dict):
        return value
    renamed = {key: _update_targets(item) for key, item in value.items()}
    if "_target_" in renamed:
        renamed["_target_"] = _RENAMED_TARGETS.get(renamed["_target_"], current_target(renamed["_target_"]))
    return renamed

"""The config of a resumed run: what its folder stores, and the rule of what the command line may change in it.

A resumed run keeps everything that decides the optimisation: data rows and their order, model, loss, optimiser, scheduler,
precision, clipping, accumulation, batch size and seed. It may change how long it trains, where it logs, its devices, where the
data is, how rows are loaded, and how it is evaluated. Anything else is refused by name; `init_from` starts a new run from the
weights. No torch is imported here, so that a refusal takes a second.
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

from ret_lightning.config.checker.config_changes import Base
from ret_lightning.config.config_errors import Wrong
from ret_lightning.config.paths import make_paths_absolute
from ret_lightning.config.targets.renamed_keys import current_config
from ret_lightning.config.targets.target_aliases import current_target
from ret_lightning.errors import ConfigError
from ret_lightning.runs.identity import differences, flat, within
from ret_lightning.runtime.run_layout import CONFIG_FILE, METRICS_FILE

# What a resumed run may change; keys, or nodes with all below them.
MAY_CHANGE = {
    "how long to train": (
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
    "where the data is": (
        "data.root", "data.train_folder", "data.val_folder", "data.test_folder", "data.passages_folder",
        "data.image_folder", "data.cache_dir", "data.layout.root", "data.layout.cache_dir",
    ),
    "loading": (
        "data.num_workers", "data.generation_workers", "data.eval_batch_size", "data.on_bad_row", "data.max_bad_fraction",
    ),
    "evaluation": (
        "evaluation", "retrieval", "test_with", "data.validation_pool", "trainer.limit_val_batches",
        "trainer.limit_test_batches", "trainer.val_check_interval", "trainer.check_val_every_n_epoch",
        "trainer.num_sanity_val_steps",
    ),
}  # fmt: skip

_ALLOWED = tuple(key for keys in MAY_CHANGE.values() for key in keys)
_OF_THE_COMMAND = ("resume", "output_dir")
_RENAMED_TARGETS = {
    "lightning.pytorch.callbacks.ModelCheckpoint": "ret_lightning.training.checkpointing.BestCheckpoint",
}
# Nodes that repeat another one in the resolved config, as its interpolation said: a change of the one changes both.
_SAME_AS = {"evaluation.index": "retrieval"}


def folder_to_resume(overrides: Sequence[str]) -> Path | None:
    """The run folder that a command line resumes; None for a new run and for `resume=auto`."""
    value = None
    for override in _parsed(overrides):
        if override.key_or_group == "resume" and not override.is_delete():
            value = override.value()
    if not isinstance(value, str) or value == "auto" or not value:
        return None
    return Path(os.path.abspath(Path(value).expanduser()))


def resumed_base(overrides: Sequence[str]) -> Base | None:
    """The stored config that a command line's overrides apply to, see `config_changes.py`; None unless it resumes a folder.

    Raises:
        ConfigError: if the folder holds no run, or the command line contradicts itself.
    """
    folder = folder_to_resume(overrides)
    if folder is None:
        return None
    for override in _parsed(overrides):
        key = override.key_or_group
        if key == "output_dir" and os.path.abspath(Path(str(override.value())).expanduser()) != str(folder):
            raise ConfigError(
                f"resume={folder} names the run folder, output_dir={override.value()} another one; leave output_dir out",
                code="resume-other-output-dir",
                folder=str(folder),
                found=str(override.value()),
            )
    config = stored_config(folder)
    config.resume = str(folder)
    return Base(config, folder / CONFIG_FILE, _OF_THE_COMMAND, _refused)


def stored_config(folder: Path) -> DictConfig:
    """The config of a run, with the folder's present place in it and names of earlier versions replaced.

    Raises:
        ConfigError: if there is no run in the folder, or its config cannot be read.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise ConfigError(
            f"resume={folder}: no run folder (it has no {CONFIG_FILE})", code="resume-no-run", folder=str(folder)
        )
    try:
        config = OmegaConf.load(file)
        plain = OmegaConf.to_container(config)
        former = str(plain["output_dir"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"{file}: not the config of a run ({reason})", code="resume-config-unreadable", path=str(file)
        ) from error
    plain = former_validation(current_config(_renamed(_moved(plain, former, str(folder)))))
    for key, other in _SAME_AS.items():
        above, _, name = key.rpartition(".")
        if isinstance(plain.get(above), dict) and plain[above].get(name) == plain.get(other) is not None:
            plain[above][name] = f"${{{other}}}"
    config = OmegaConf.create(plain)
    make_paths_absolute(config, _first_working_folder(folder))
    return config


def _first_working_folder(folder: Path) -> str | None:
    """Where a run was started, which the relative paths of an earlier version refer to; None where it is not recorded."""
    file = folder / ".hydra" / "hydra.yaml"
    try:
        return OmegaConf.select(OmegaConf.load(file), "hydra.runtime.cwd") if file.is_file() else None
    except (OSError, yaml.YAMLError, OmegaConfBaseException):
        return None


def refuse_finished(folder: Path, config: DictConfig) -> None:
    """Raise ConfigError if the run in a folder is finished, and `config` changes nothing about it."""
    if (folder / METRICS_FILE).exists() and not _changes(stored_config(folder), config):
        raise ConfigError(
            f"resume={folder}: the run is finished ({METRICS_FILE} exists); state what to change to continue it, for "
            "instance trainer.max_epochs=20",
            code="resume-finished",
            folder=str(folder),
        )


def _changes(before: DictConfig, after: DictConfig) -> dict[str, tuple[Any, Any]]:
    found = differences(flat(before), flat(after))
    return {key: pair for key, pair in found.items() if not within(key, _OF_THE_COMMAND)}


def _refused(before: DictConfig, after: DictConfig) -> Iterator[Wrong]:
    """Each key that may not change, with the error."""
    for key, (stored, now) in _changes(before, after).items():
        if not within(key, _ALLOWED):
            text = (
                f"{now} (stored: {stored}): a resumed run keeps all that decides the optimisation; it may change "
                f"{', '.join(MAY_CHANGE)}; start a new run with init_from=<run folder> to change it"
            )
            yield (
                key,
                ConfigError(text, code="resume-setting-fixed", stored=stored, found=now, allowed=tuple(MAY_CHANGE)),
            )


def _parsed(overrides: Sequence[str]) -> list[Any]:
    parser, parsed = OverridesParser.create(), []
    for line in overrides:
        try:
            parsed += parser.parse_overrides([line])
        except HydraException:
            continue  # reported by the check of the config
    return parsed


def _moved(value: Any, old: str, new: str) -> Any:
    """A config with one folder in place of another, at the beginning of any string."""
    if isinstance(value, dict):
        return {key: _moved(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [_moved(item, old, new) for item in value]
    if isinstance(value, str) and (value == old or value.startswith(f"{old}/")):
        return new + value[len(old) :]
    return value


def former_validation(config: dict[str, Any]) -> dict[str, Any]:
    """A config of a version before data.validation=holdout, whose `auto` took the test queries where there is no file."""
    data = config.get("data")
    if isinstance(data, dict) and data.get("validation") == "auto" and "holdout_rows" not in data:
        return {**config, "data": {**data, "validation": "val_or_test"}}
    return config


def _renamed(value: Any) -> Any:
    """A config with the targets of earlier versions by their names of today."""
    if isinstance(value, list):
        return [_renamed(item) for item in value]
    if not isinstance(value, dict):
        return value
    renamed = {key: _renamed(item) for key, item in value.items()}
    if "_target_" in renamed:
        renamed["_target_"] = _RENAMED_TARGETS.get(renamed["_target_"], current_target(renamed["_target_"]))
    return renamed

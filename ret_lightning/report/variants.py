"""Variants of a set of runs: groups of equal config, seeds aside, named by the config keys that vary."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ret_lightning.config.config_errors import choices
from ret_lightning.errors import ConfigError
from ret_lightning.report.run_folders import Run
from ret_lightning.runs.identity import ABSENT, config_fingerprint, is_within, run_identity

# Keys that determine the queries and candidate pools of the test split.
_DATASET_KEYS = (
    "data._target_",
    "data.root",
    "data.subsets",
    "data.corpus_seed",
    "data.corpus_image_size",
    "data.test_folder",
    "data.passages_folder",
    "trainer.limit_test_batches",
)


@dataclass(frozen=True)
class VariedSetting:
    """A setting that varies between variants.

    Attributes:
        name: shortest unambiguous name, such as `gate` or `num_tokens`.
        keys: config keys of the setting: the key itself, its copies in other nodes, and keys set by the option of a group.
    """

    name: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Variant:
    """Runs that differ by their seed only.

    Attributes:
        label: such as `gate=lstm num_tokens=8`.
        values: name of a setting to its value, as text.
        config: flat config without seeds and folders.
        fingerprint: first 12 hexadecimal digits of the SHA-256 of `config`.
        runs: one per seed, ascending.
    """

    label: str
    values: dict[str, str]
    config: dict[str, Any]
    fingerprint: str
    runs: tuple[Run, ...]


def group_runs(runs: Sequence[Run]) -> tuple[list[Variant], list[VariedSetting], list[str]]:
    """Group runs by config.

    Args:
        runs: finished runs.

    Returns:
        Variants, in the order of the first run of each; settings that vary; and remarks about runs that are left out because
        another run has the same config and seed.

    Raises:
        ConfigError: if the runs are of different datasets.
    """
    flat = _flat_configs(runs)
    _check_same_dataset(runs, flat)
    by_fingerprint: dict[str, list[int]] = defaultdict(list)
    for i, config in enumerate(flat):
        by_fingerprint[config_fingerprint(config)].append(i)
    remarks = []
    members: list[list[int]] = []
    for found in by_fingerprint.values():
        by_seed: dict[int, int] = {}
        for i in found:
            first = by_seed.setdefault(runs[i].seed, i)
            if first != i:
                remarks.append(f"{runs[i].name} is left out: same config and seed as {runs[first].name}")
        members.append([by_seed[seed] for seed in sorted(by_seed)])
    configs = [flat[found[0]] for found in members]
    settings, values = _settings(configs, [runs[found[0]].choices for found in members])
    variants = [
        Variant(
            label=" ".join(f"{name}={value}" for name, value in own.items()) or "all runs",
            values=own,
            config=config,
            fingerprint=fingerprint,
            runs=tuple(runs[i] for i in found),
        )
        for own, config, fingerprint, found in zip(values, configs, by_fingerprint, members, strict=True)
    ]
    return variants, settings, remarks


def find_varied_settings(runs: Sequence[Run]) -> tuple[list[VariedSetting], list[dict[str, str]]]:
    """Find the settings that vary between runs, seeds aside, and the value of each setting in each run."""
    return _settings(_flat_configs(runs), [run.choices for run in runs])


def choose_baseline(variants: Sequence[Variant], settings: Sequence[VariedSetting], wanted: str | None) -> Variant:
    """Return the variant with the given settings.

    Args:
        variants: to choose from.
        settings: that vary between them.
        wanted: `gate=lstm` or `gate=lstm num_tokens=8`; None: the first variant.

    Raises:
        ConfigError: if no variant has these settings, or several have.
    """
    if wanted is None:
        return variants[0]
    names = {key: setting.name for setting in settings for key in setting.keys}
    requested = []
    for part in re.split(r"[,\s]+(?![^\[]*\])", wanted.strip()):
        name, _, value = part.partition("=")
        requested.append((names.get(name, name), value))
    matches = [
        v for v in variants if v.label == wanted or all(v.values.get(name) == value for name, value in requested)
    ]
    if not matches:
        existing = [f"{name}={value}" for variant in variants for name, value in variant.values.items()]
        parts = (f"{name}={value}" for name, value in requested)
        unknown = next((part for part in parts if part not in existing), None)
        if unknown is not None and existing:
            raise ConfigError(
                f"baseline={wanted}: no variant has {unknown}{choices(unknown, existing)}",
                code="baseline-setting-unknown",
                found=unknown,
                allowed=tuple(dict.fromkeys(existing)),
            )
        labels = tuple(variant.label for variant in variants)
        raise ConfigError(
            f"baseline={wanted}: no variant has all of these settings{choices(wanted, labels)}",
            code="baseline-unknown",
            found=wanted,
            allowed=labels,
        )
    if len(matches) > 1:
        matching = "; ".join(variant.label for variant in matches)
        raise ConfigError(
            f"baseline={wanted}: matches {len(matches)} variants, expected one; add settings: {matching}",
            code="baseline-ambiguous",
            found=wanted,
            allowed=tuple(variant.label for variant in matches),
        )
    return matches[0]


def format_setting(value: object) -> str:
    """Format a config value as it is written on the command line."""
    if value is ABSENT:
        return ABSENT
    if isinstance(value, str):
        return value
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _flat_configs(runs: Sequence[Run]) -> list[dict[str, Any]]:
    configs = [run_identity(run.config) for run in runs]
    keys = dict.fromkeys(key for config in configs for key in config)
    # In a resolved config data.seed=${seed} is a number; it is a copy if it equals the seed in every run.
    copies = {
        key
        for key in keys
        if key.endswith(".seed") and all(config.get(key) == run.seed for config, run in zip(configs, runs, strict=True))
    }
    return [{k: v for k, v in config.items() if k not in copies and k != "seed"} for config in configs]


def _check_same_dataset(runs: Sequence[Run], flat: Sequence[Mapping[str, Any]]) -> None:
    datasets: dict[str, list[str]] = defaultdict(list)
    for run, config in zip(runs, flat, strict=True):
        known = {key: config[key] for key in _DATASET_KEYS if config.get(key) is not None}
        if isinstance(known.get("data.subsets"), list):
            known["data.subsets"] = sorted(known["data.subsets"])
        datasets[json.dumps(known, sort_keys=True)].append(run.name)
    if len(datasets) == 1:
        return
    parsed = [(json.loads(text), names) for text, names in datasets.items()]
    differing = [key for key in _DATASET_KEYS if len({json.dumps(known.get(key)) for known, _ in parsed}) > 1]
    listed = "; ".join(
        f"{', '.join(f'{key}={format_setting(known.get(key))}' for key in differing)}: {_listed(names)}"
        for known, names in parsed
    )
    raise ConfigError(
        f"runs of {len(parsed)} different datasets cannot be compared ({listed}); set runs= to a folder whose runs have the "
        "same dataset",
        code="report-datasets-differ",
        keys=tuple(differing),
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _settings(
    configs: Sequence[Mapping[str, Any]], chosen: Sequence[Mapping[str, str]]
) -> tuple[list[VariedSetting], list[dict[str, str]]]:
    """Return the settings that vary between configs, and the value of each setting in each config."""
    varying: dict[str, tuple[str, ...]] = {}  # key -> its value in each config
    for key in dict.fromkeys(key for config in configs for key in config):
        values = tuple(format_setting(config.get(key, ABSENT)) for config in configs)
        if len(set(values)) > 1:
            varying[key] = values
    order = list(varying)
    found = _of_outer_groups(varying, chosen)
    for keys, _ in found.values():
        for key in keys:
            del varying[key]
    options = {group: _options(group, configs, chosen) for group in dict.fromkeys(k.split(".")[0] for k in varying)}
    copies: dict[tuple[str, tuple[str, ...]], list[str]] = defaultdict(list)
    for key, values in varying.items():
        copies[key.rpartition(".")[2], values].append(key)

    def rank(key: str) -> tuple[bool, int, int, str]:
        group = key.split(".")[0]
        return len(set(options[group])) == 1, key.count("."), len(key), key

    for (_, values), keys in copies.items():
        keys.sort(key=rank)
        group = keys[0].split(".")[0]
        option = options[group]
        group_varies = len(set(option)) > 1 and "." in keys[0]
        # The option determines the value.
        if group_varies and len(set(zip(option, values, strict=True))) == len(set(option)):
            found.setdefault(group, ([], option))[0].extend(keys)
        else:
            found[keys[0]] = (keys, values)

    def position(item: tuple[str, tuple[list[str], tuple[str, ...]]]) -> int:
        name, (keys, _) = item
        return min(order.index(key) for key in [k for k in order if is_within(k, [name])] or keys)

    found = dict(sorted(found.items(), key=position))
    names = _short_names(list(found))
    settings = [VariedSetting(names[key], tuple(keys)) for key, (keys, _) in found.items()]
    of_runs = [{names[key]: _class_name(key, of[i]) for key, (_, of) in found.items()} for i in range(len(configs))]
    return settings, of_runs


def _of_outer_groups(
    varying: Mapping[str, tuple[str, ...]], chosen: Sequence[Mapping[str, str]]
) -> dict[str, tuple[list[str], tuple[str, ...]]]:
    """Return the varying keys that are determined by the option of a group without a node of its own, as in a study."""
    nodes = {key.split(".")[0] for key in varying}
    found: dict[str, tuple[list[str], tuple[str, ...]]] = {}
    taken: set[str] = set()
    for group in dict.fromkeys(group for own in chosen for group in own):
        if group in nodes or not all(group in own for own in chosen):
            continue
        option = tuple(own[group] for own in chosen)
        keys = [
            key
            for key, values in varying.items()
            if key not in taken and len(set(zip(option, values, strict=True))) == len(set(option)) > 1
        ]
        if keys:
            found[group] = (keys, option)
            taken.update(keys)
    return found


def _options(group: str, configs: Sequence[Mapping[str, Any]], chosen: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    """Return the option of a group in each config: from Hydra's record, or else the class that the node builds."""
    if all(group in own for own in chosen):
        return tuple(own[group] for own in chosen)
    return tuple(
        _class_name(f"{group}._target_", format_setting(config.get(f"{group}._target_", ABSENT))) for config in configs
    )


def _class_name(key: str, value: str) -> str:
    return value.rpartition(".")[2] if key.endswith("_target_") else value


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return each key without its top-level node and `_target_`, unless that is ambiguous."""
    short = {key: key.removesuffix("._target_") for key in keys}
    for key in keys:
        candidate = short[key].partition(".")[2]
        others = {name for k in keys if k != key for name in (short[k], short[k].partition(".")[2])}
        if candidate and candidate not in others and candidate != "seed":  # `seed` is the seed of the run
            short[key] = candidate
    return short

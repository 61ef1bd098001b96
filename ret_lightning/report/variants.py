"""What varies between runs: their resolved configs compared, and folded to the fewest and shortest names."""

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
from ret_lightning.runs.identity import ABSENT, config_fingerprint, of_the_run, within

# Of the node `data`, and beside it, what decides which queries are asked of which pools.
_OF_THE_DATASET = (
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
    """A key of the config that varies.

    Attributes:
        name: the shortest that tells it from the others, `gate` or `num_tokens`.
        keys: the config keys behind it: itself, its copies in other nodes, and what the choice of a group brings along.
    """

    name: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Variant:
    """Runs of one config, seeds aside.

    Attributes:
        label: `gate=lstm num_tokens=8`.
        values: name of a setting to its value, as text.
        config: the flat config, seeds and folders aside.
        fingerprint: of this config, 12 hexadecimal digits of its SHA-256.
        runs: one a seed, ascending.
    """

    label: str
    values: dict[str, str]
    config: dict[str, Any]
    fingerprint: str
    runs: tuple[Run, ...]


def group(runs: Sequence[Run]) -> tuple[list[Variant], list[VariedSetting], list[str]]:
    """Runs put together by config, in the order of the first run of each.

    Returns:
        The variants; the settings that tell them apart; and remarks: runs left out since they repeat the config and the seed
        of another one, which a mean would count twice.

    Raises:
        ConfigError: if the runs are of different datasets.
    """
    flat = _flat_configs(runs)
    _one_dataset(runs, flat)
    together: dict[str, list[int]] = defaultdict(list)
    for i, config in enumerate(flat):
        together[config_fingerprint(config)].append(i)
    remarks = []
    members: list[list[int]] = []
    for found in together.values():
        by_seed: dict[int, int] = {}
        for i in found:
            first = by_seed.setdefault(runs[i].seed, i)
            if first != i:
                remarks.append(
                    f"{runs[i].name} is left out: it has the config and the seed of {runs[first].name}, and is no repetition"
                )
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
        for own, config, fingerprint, found in zip(values, configs, together, members, strict=True)
    ]
    return variants, settings, remarks


def differing(runs: Sequence[Run]) -> tuple[list[VariedSetting], list[dict[str, str]]]:
    """What tells runs apart, seeds aside, and of each run the value of each setting."""
    return _settings(_flat_configs(runs), [run.choices for run in runs])


def choose(variants: Sequence[Variant], settings: Sequence[VariedSetting], wanted: str | None) -> Variant:
    """The variant that some of its settings name, `gate=lstm` or `gate=lstm num_tokens=8`; without any, the first one.

    Raises:
        ConfigError: if no variant has these settings, or several have.
    """
    if wanted is None:
        return variants[0]
    full = {key: setting.name for setting in settings for key in setting.keys}
    asked = []
    for part in re.split(r"[,\s]+(?![^\[]*\])", wanted.strip()):
        name, _, value = part.partition("=")
        asked.append((full.get(name, name), value))
    fitting = [v for v in variants if v.label == wanted or all(v.values.get(name) == value for name, value in asked)]
    if not fitting:
        there = [f"{name}={value}" for variant in variants for name, value in variant.values.items()]
        unknown = next((part for part in (f"{name}={value}" for name, value in asked) if part not in there), None)
        if unknown is not None and there:
            raise ConfigError(
                f"baseline={wanted}: no variant has {unknown}{choices(unknown, there)}",
                code="baseline-setting-unknown",
                found=unknown,
                allowed=tuple(dict.fromkeys(there)),
            )
        labels = tuple(variant.label for variant in variants)
        raise ConfigError(
            f"baseline={wanted}: no variant is that{choices(wanted, labels)}",
            code="baseline-unknown",
            found=wanted,
            allowed=labels,
        )
    if len(fitting) > 1:
        shown = "; ".join(variant.label for variant in fitting)
        raise ConfigError(
            f"baseline={wanted}: {len(fitting)} variants are that, name more of their settings: {shown}",
            code="baseline-ambiguous",
            found=wanted,
            allowed=tuple(variant.label for variant in fitting),
        )
    return fitting[0]


def typed_value(value: Any) -> str:
    """A config value as one would type it."""
    if value is ABSENT:
        return ABSENT
    if isinstance(value, str):
        return value
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _flat_configs(runs: Sequence[Run]) -> list[dict[str, Any]]:
    every_flat = [of_the_run(run.config) for run in runs]
    every = dict.fromkeys(key for config in every_flat for key in config)
    # data.seed=${seed} stands in a resolved config as a number, which is the run's own in all of them.
    copies = {
        key
        for key in every
        if key.endswith(".seed")
        and all(config.get(key) == run.seed for config, run in zip(every_flat, runs, strict=True))
    }
    return [{k: v for k, v in config.items() if k not in copies and k != "seed"} for config in every_flat]


def _one_dataset(runs: Sequence[Run], flat: Sequence[Mapping[str, Any]]) -> None:
    asked: dict[str, list[str]] = defaultdict(list)
    for run, config in zip(runs, flat, strict=True):
        known = {key: config[key] for key in _OF_THE_DATASET if config.get(key) is not None}
        if isinstance(known.get("data.subsets"), list):
            known["data.subsets"] = sorted(known["data.subsets"])
        asked[json.dumps(known, sort_keys=True)].append(run.name)
    if len(asked) == 1:
        return
    parsed = [(json.loads(text), names) for text, names in asked.items()]
    differing = [key for key in _OF_THE_DATASET if len({json.dumps(known.get(key)) for known, _ in parsed}) > 1]
    told = "; ".join(
        f"{', '.join(f'{key}={typed_value(known.get(key))}' for key in differing)}: {_listed(names)}"
        for known, names in parsed
    )
    raise ConfigError(
        f"the runs are of {len(parsed)} different datasets, whose metrics cannot be compared ({told}); "
        "report them one by one, with runs= naming a folder that holds one dataset's",
        code="report-datasets-differ",
        keys=tuple(differing),
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _settings(
    configs: Sequence[Mapping[str, Any]], chosen: Sequence[Mapping[str, str]]
) -> tuple[list[VariedSetting], list[dict[str, str]]]:
    """What tells configs apart, and of each config the value of each setting."""
    varying: dict[str, tuple[str, ...]] = {}  # key -> its value in each config
    for key in dict.fromkeys(key for config in configs for key in config):
        values = tuple(typed_value(config.get(key, ABSENT)) for config in configs)
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
        of_the_choice = len(set(option)) > 1 and "." in keys[0]
        if of_the_choice and len(set(zip(option, values, strict=True))) == len(set(option)):  # the choice decides it
            found.setdefault(group, ([], option))[0].extend(keys)
        else:
            found[keys[0]] = (keys, values)

    def place(item: tuple[str, tuple[list[str], tuple[str, ...]]]) -> int:
        name, (keys, _) = item
        return min(order.index(key) for key in [k for k in order if within(k, [name])] or keys)

    found = dict(sorted(found.items(), key=place))
    names = _short(list(found))
    settings = [VariedSetting(names[key], tuple(keys)) for key, (keys, _) in found.items()]
    values = [{names[key]: _plain(key, of[i]) for key, (_, of) in found.items()} for i in range(len(configs))]
    return settings, values


def _of_outer_groups(
    varying: Mapping[str, tuple[str, ...]], chosen: Sequence[Mapping[str, str]]
) -> dict[str, tuple[list[str], tuple[str, ...]]]:
    """Groups whose files set keys all over the config, as a study's own do: what follows from the choice goes by its name."""
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
    """Of each config the option of a group: as Hydra noted it, or, where notes are missing, the class that it builds."""
    if all(group in own for own in chosen):
        return tuple(own[group] for own in chosen)
    return tuple(
        _plain(f"{group}._target_", typed_value(config.get(f"{group}._target_", ABSENT))) for config in configs
    )


def _plain(key: str, value: str) -> str:
    return value.rpartition(".")[2] if key.endswith("_target_") else value


def _short(keys: Sequence[str]) -> dict[str, str]:
    """Each key without its top-level node and without `_target_`, where that leaves them different."""
    short = {key: key.removesuffix("._target_") for key in keys}
    for key in keys:
        candidate = short[key].partition(".")[2]
        others = {name for k in keys if k != key for name in (short[k], short[k].partition(".")[2])}
        if candidate and candidate not in others and candidate != "seed":  # that is the run's
            short[key] = candidate
    return short

"""Check of a command line that changes a stored config, for instance to resume a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, open_dict, read_write

from ret_lightning.config.checker.composition_check import Check
from ret_lightning.config.checker.config_check import CheckResult, drop_duplicates, drop_hydra, find_problems, prepare
from ret_lightning.config.checker.overrides import ParsedOverride, check_sweep
from ret_lightning.config.config_errors import COMMAND_LINE, KeyedError, Problem
from ret_lightning.config.nodes import to_plain
from ret_lightning.errors import ConfigError


@dataclass(frozen=True)
class StoredConfig:
    """A stored config that the overrides of the command line apply to.

    Attributes:
        config: the stored config.
        file: file of the config, for messages.
        command_keys: keys that control the command and do not change the config.
        find_refused: given the config before and after the overrides, returns each key that may not change, with the error.
    """

    config: DictConfig
    file: Path
    command_keys: Sequence[str]
    find_refused: Callable[[DictConfig, DictConfig], Iterable[KeyedError]]


def check_changes(
    base: StoredConfig,
    search_path: Sequence[str],
    config_name: str,
    overrides: Sequence[str],
    schema: type,
    *,
    multirun: bool = False,
) -> CheckResult:
    """Apply overrides to a stored config, and find all problems in the result.

    Groups (`logger=csv`) are composed from their files; single values are applied by Hydra.

    Args:
        base: the stored config.
        search_path: folders of the configs as Hydra URIs, the main folder first.
        config_name: name of the primary config.
        overrides: overrides of the command line, as typed.
        schema: dataclass of the top-level keys.
        multirun: whether the command line requests a sweep, which is a problem here.
    """
    root, composer, parsed, problems = prepare(search_path, config_name, overrides, schema)
    if composer is None:
        return CheckResult(problems, multirun)
    if multirun:
        text = f"{base.file} is the config of a single run; remove --multirun"
        error = ConfigError(text, code="stored-config-multirun")
        problems.append(Problem(f"{COMMAND_LINE}--multirun", "", error))
    problems += [found for override in parsed if (found := check_sweep(override, multirun=False)) is not None]
    own = [each for each in parsed if each.is_hydra_override() or each.key_or_group in base.command_keys]
    changes = [each for each in parsed if each not in own and not each.is_sweep_override()]
    groups = [each for each in changes if composer.repository.group_exists(each.key_or_group) and not each.is_delete()]
    composition = composer.compose([*own, *groups], multirun=False)
    if composition.config is None:
        return CheckResult([*problems, *composition.problems], multirun=False)
    composed = to_plain(composition.config)
    changed = to_plain(base.config)
    # Keys that a later version added get their default.
    changed |= {key: composed[key] for key in root.parameters if key not in changed and key in composed}
    for group in groups:
        if group.key_or_group in root.parameters:
            changed[group.key_or_group] = composed[group.key_or_group]
        else:
            text = f"the group sets keys of several nodes; set each key to change in {base.file} separately"
            error = ConfigError(text, code="stored-config-group", group=group.key_or_group)
            problems.append(Problem(group.source, group.key_or_group, error))
    applied = composer.apply(changed, [each for each in changes if each not in groups])
    applied.problems, applied.is_complete = composition.problems, composition.is_complete
    config = applied.config
    assert config is not None  # the stored config is complete
    with read_write(config), open_dict(config):
        config.hydra = composition.config.hydra
    invalid = find_problems([Check(composer, applied, root, schema)], problems, complete=True)
    final = drop_hydra(config)
    if not problems and not invalid:
        invalid = [
            Problem(_find_source(key, changes), key, error) for key, error in base.find_refused(base.config, final)
        ]
    return CheckResult(drop_duplicates([*problems, *invalid]), multirun=False, config=final)


def _find_source(key: str, overrides: Sequence[ParsedOverride]) -> str:
    """Return the source of the override that set a key: the override with the longest matching key, the last one if equal."""
    setters = [each for each in overrides if f"{key}.".startswith(f"{each.key_or_group}.")]
    return (
        max(reversed(setters), key=lambda each: len(each.key_or_group)).source if setters else COMMAND_LINE.strip(": ")
    )

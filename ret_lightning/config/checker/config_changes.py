"""The check of a command line that changes a stored config, as resuming a run does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from ret_lightning.config.checker.composition_check import Check
from ret_lightning.config.checker.config_check import Verdict, distinct, find_problems, prepare, without_hydra
from ret_lightning.config.checker.overrides import ParsedOverride, wrong_sweep
from ret_lightning.config.config_errors import COMMAND_LINE, Problem, Wrong
from ret_lightning.errors import ConfigError


@dataclass(frozen=True)
class Base:
    """A stored config that the command line's overrides apply to, instead of a newly composed one.

    Attributes:
        config: the stored config.
        file: where it is stored, for messages.
        of_command: keys of the command line that say what to do with the config, and do not change it.
        refused: of the config before and after the overrides, each key that may not change, with the error.
    """

    config: DictConfig
    file: Path
    of_command: Sequence[str]
    refused: Callable[[DictConfig, DictConfig], Iterable[Wrong]]


def check_changes(
    base: Base,
    search_path: Sequence[str],
    config_name: str,
    overrides: Sequence[str],
    schema: type,
    *,
    multirun: bool = False,
) -> Verdict:
    """Apply overrides to a stored config, and find every problem in the result.

    Groups (`logger=csv`) are composed from their files, single values are applied as Hydra does.

    Args:
        base: the stored config.
        search_path: the folders that Hydra searches, see `initialized`.
        config_name: the primary config's name.
        overrides: the command line's overrides, as typed.
        schema: the dataclass of the top level's keys.
        multirun: the command line asks for a sweep, which is refused.
    """
    root, composer, parsed, problems = prepare(search_path, config_name, overrides, schema)
    if composer is None:
        return Verdict(problems, multirun)
    if multirun:
        wrong = ConfigError(f"{base.file} is one run; leave --multirun out", code="stored-config-multirun")
        problems.append(Problem(f"{COMMAND_LINE}--multirun", "", wrong))
    problems += [wrong for override in parsed if (wrong := wrong_sweep(override, multirun=False)) is not None]
    own = [each for each in parsed if each.is_hydra_override() or each.key_or_group in base.of_command]
    changes = [each for each in parsed if each not in own and not each.is_sweep_override()]
    groups = [each for each in changes if composer.repository.group_exists(each.key_or_group) and not each.is_delete()]
    composition = composer.compose([*own, *groups], multirun=False)
    if composition.config is None:
        return Verdict([*problems, *composition.problems], multirun=False)
    composed = OmegaConf.to_container(composition.config, resolve=False)
    changed = OmegaConf.to_container(base.config, resolve=False)
    # A key that a later version added has its default.
    changed |= {key: composed[key] for key in root.parameters if key not in changed and key in composed}
    for group in groups:
        if group.key_or_group in root.parameters:
            changed[group.key_or_group] = composed[group.key_or_group]
        else:
            text = f"sets keys of several groups; state each key to change in {base.file} by itself"
            wrong = ConfigError(text, code="stored-config-group", group=group.key_or_group)
            problems.append(Problem(group.source, group.key_or_group, wrong))
    applied = composer.apply(changed, [each for each in changes if each not in groups])
    applied.problems, applied.whole = composition.problems, composition.whole
    with read_write(applied.config), open_dict(applied.config):
        applied.config.hydra = composition.config.hydra
    found = find_problems([Check(composer, applied, root, schema)], problems, complete=True)
    config = without_hydra(applied.config)
    if not problems and not found:
        found = [Problem(_source(key, changes), key, wrong) for key, wrong in base.refused(base.config, config)]
    return Verdict(distinct([*problems, *found]), multirun=False, config=config)


def _source(key: str, overrides: Sequence[ParsedOverride]) -> str:
    """Which override set a key: the one with the longest path to it, of equal ones the last."""
    setters = [each for each in overrides if f"{key}.".startswith(f"{each.key_or_group}.")]
    return (
        max(reversed(setters), key=lambda each: len(each.key_or_group)).source if setters else COMMAND_LINE.strip(": ")
    )

"""Check of a config before a command runs: all problems are reported at once.

Unknown names are reported before any target is imported, because most imports load PyTorch. If all names are known, the targets
are imported and their arguments are checked as well.

Each key has one owner. A key in a node with a `_target_` belongs to the signature of the target. A top-level key belongs to the
schema, a dataclass of the command. The check composes the config with Hydra, then compares each file, each override of the
command line, and the final config with these owners.

The fields of a schema are the top-level keys: a field without a default must be set, and its annotation is the type of the
value (`Any` or `dict[str, Any]` for a node with a `_target_`). Rules between keys are in an optional method

    @staticmethod
    def check(config: DictConfig) -> Iterable[tuple[str, ConfigError]]: ...

which is called with the composed config if there are no other problems, and yields dotted keys with errors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hydra.core.utils import setup_globals
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ret_lightning.config.checker.composition import Composer, Composition
from ret_lightning.config.checker.composition_check import Check
from ret_lightning.config.checker.overrides import (
    ParsedOverride,
    check_sweep,
    command_line_source,
    expand_sweeps,
    parse,
)
from ret_lightning.config.checker.signatures import Signature, signature_of
from ret_lightning.config.checker.sweep_params import find_renamed_params, rename_params
from ret_lightning.config.config_errors import Problem
from ret_lightning.config.nodes import child_keys
from ret_lightning.errors import ConfigError
from ret_lightning.runtime.deprecation import deprecation

# Codes of problems in values: the names are valid, so the targets can be imported to find further problems.
_OF_VALUES = ("interpolation-failed", "required-key-unset", "value-missing", "value-of-wrong-type")


@dataclass(frozen=True)
class CheckResult:
    """The result of a check.

    Attributes:
        problems: all problems found.
        multirun: whether the config or the command line requests a multirun.
        dry_run: whether the jobs are only listed.
        config: the composed config without `hydra`, unresolved; None if composition failed. For a multirun, the config of
            the first job.
        deprecations: a message for each earlier key in `hydra.sweeper.params`.
    """

    problems: list[Problem]
    multirun: bool
    dry_run: bool = False
    config: DictConfig | None = None
    deprecations: tuple[str, ...] = ()


def check(
    search_path: Sequence[str],
    config_name: str,
    overrides: Sequence[str],
    schema: type,
    *,
    multirun: bool = False,
    complete: bool = True,
) -> CheckResult:
    """Compose a config and find all problems in it.

    Args:
        search_path: folders of the configs as Hydra URIs, the main folder first.
        config_name: name of the primary config.
        overrides: overrides of the command line, as typed.
        schema: dataclass of the top-level keys.
        multirun: whether the command line requests a sweep. Each value of a sweep is checked with the first values of the
            other sweeps; of a range only the first value is checked.
        complete: whether missing values are problems. False for a config that is displayed but not run; then no target is
            imported.
    """
    root, composer, parsed, problems = prepare(search_path, config_name, overrides, schema)
    if composer is None:
        return CheckResult(problems, multirun)
    deprecations: tuple[str, ...] = ()
    jobs = expand_sweeps(parsed)
    first = composer.compose(next(jobs), multirun=multirun)
    if first.config is not None and first.config.hydra.mode == RunMode.MULTIRUN:
        multirun = True
    if multirun and first.config is not None:
        of_sweeper, invalid, deprecations = _sweeper_settings(composer, first, overrides, parsed)
        problems += invalid
        jobs = expand_sweeps([*of_sweeper, *parsed])
        first = composer.compose(next(jobs), multirun=True)
    problems += [found for override in parsed if (found := check_sweep(override, multirun=multirun)) is not None]
    compositions = [first, *(composer.compose(job, multirun=True) for job in (jobs if multirun else ()))]
    problems += find_problems([Check(composer, each, root, schema) for each in compositions], problems, complete)
    dry_run = first.config is not None and bool(OmegaConf.select(first.config, "dry_run"))
    unreadable = {problem.key for problem in problems if problem.code == "override-needs-quotes"}
    problems = [each for each in problems if each.code != "value-missing" or each.key not in unreadable]
    config = None if first.config is None else drop_hydra(first.config)
    return CheckResult(drop_duplicates(problems), multirun, dry_run, config, deprecations)


def prepare(
    search_path: Sequence[str], config_name: str, overrides: Sequence[str], schema: type
) -> tuple[Signature, Composer | None, list[ParsedOverride], list[Problem]]:
    """Prepare a check.

    Returns:
        The signature of the schema; the composer, None if the search path is invalid; the parsed overrides; the problems so
        far.
    """
    setup_globals()
    root = signature_of(schema)
    assert root is not None
    parsed, problems = parse(overrides, [command_line_source(line) for line in overrides])
    try:
        composer = Composer(search_path, config_name, parsed)
    except ConfigError as error:
        return root, None, parsed, [*problems, Problem("config search path", "", error)]
    for override in parsed:
        override.config_loader = composer.loader  # needed to list the options that a glob matches
    return root, composer, parsed, problems


def find_problems(checks: Sequence[Check], known: Sequence[Problem], complete: bool) -> list[Problem]:
    """Find the problems of some compositions. Targets are imported only if all names are valid.

    Args:
        checks: one check per composition.
        known: problems found before.
        complete: whether missing values are problems.
    """
    found = [problem for each in checks for problem in each.run(complete, imports=False)]
    if complete and all(problem.code in _OF_VALUES for problem in (*known, *found)):
        return [problem for each in checks for problem in each.run(complete, imports=True)]
    return found


def drop_hydra(config: DictConfig) -> DictConfig:
    """Return a composed config without its `hydra` node."""
    return OmegaConf.masked_copy(config, [key for key in child_keys(config) if key != "hydra"])


def drop_duplicates(problems: Iterable[Problem]) -> list[Problem]:
    """Return the problems in order without duplicates, compared by their text."""
    found: dict[str, Problem] = {}
    for problem in problems:
        found.setdefault(str(problem), problem)
    return list(found.values())


def _sweeper_settings(
    composer: Composer, first: Composition, overrides: Sequence[str], parsed: Sequence[ParsedOverride]
) -> tuple[list[ParsedOverride], list[Problem], tuple[str, ...]]:
    """Parse the parameters of the sweeper (`hydra.sweeper.params`) that the command line does not set.

    Args:
        composer: the composer of the config.
        first: the composition of the first job without these parameters.
        overrides: overrides of the command line, as typed.
        parsed: the same overrides, parsed.

    Returns:
        The parameters as overrides; a problem for each that cannot be parsed; a deprecation message for each earlier key.
    """
    assert first.config is not None
    params = OmegaConf.select(first.config, "hydra.sweeper.params") or {}
    sources: dict[tuple[str, ...], str] = {}
    for file in first.files:
        sources |= {(*file.package, *path): entry.source for path, entry in file.content.walk()}
    renamed = find_renamed_params(
        params, overrides, composer.loader, lambda job: composer.compose(job, multirun=True).config
    )
    package = ("hydra", "sweeper", "params")
    located = {key: sources.get((*package, key), ".".join((*package, key))) for key in map(str, params)}
    located |= {new: located[key] for key, new in renamed.items()}
    typed = {override.get_key_element() for override in parsed}
    current = {key: value for key, value in rename_params(params, renamed).items() if key not in typed}
    deprecations = tuple(deprecation(f"{key}={params[key]}", f"{new}={params[key]}") for key, new in renamed.items())
    settings, problems = parse([f"{key}={value}" for key, value in current.items()], [located[key] for key in current])
    return settings, problems, deprecations

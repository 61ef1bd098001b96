"""The check that runs before a command does anything: every problem in a config at once.

A wrong name is reported without an import, which for most targets is one of PyTorch. Once all names are right, the targets are
imported, and their arguments are checked as well.

Each option has one owner. A key in a node with a `_target_` belongs to the signature of what the target builds; a key
of the top level belongs to a dataclass that the command gives, the schema. The check composes the config as Hydra will,
then holds every file that takes part, every override on the command line, and the final config against those owners.

A schema's fields are the keys of the top level: one without a default must be set in the config, and its annotation
says what fits (`Any` or `dict[str, Any]` for a node with a `_target_`). For what no single key can tell it may have

    @staticmethod
    def check(config: DictConfig) -> Iterable[tuple[str, ConfigError]]: ...

which gets the composed config when nothing else is wrong, and yields pairs of a dotted key and the error in its value.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hydra.core.utils import setup_globals
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ret_lightning.config.checker.composition import Composer, Composition
from ret_lightning.config.checker.composition_check import Check
from ret_lightning.config.checker.overrides import ParsedOverride, on_command_line, parse, variants, wrong_sweep
from ret_lightning.config.checker.signatures import Signature, signature_of
from ret_lightning.config.config_errors import Problem
from ret_lightning.errors import ConfigError

# Of problems in a value: the names are right, so that importing the targets is worth its time.
_OF_VALUES = ("interpolation-failed", "required-key-unset", "value-missing", "value-of-wrong-type")


@dataclass(frozen=True)
class Verdict:
    """What the check found.

    Attributes:
        problems: all of them.
        multirun: the config or the command line asks for a multirun.
        dry_run: only the jobs are to be listed.
        config: the composed config without `hydra`, unresolved; None where nothing could be composed. Of a multirun it is
            the first job's.
    """

    problems: list[Problem]
    multirun: bool
    dry_run: bool = False
    config: DictConfig | None = None


def check(
    search_path: Sequence[str],
    config_name: str,
    overrides: Sequence[str],
    schema: type,
    *,
    multirun: bool = False,
    complete: bool = True,
) -> Verdict:
    """Compose a config and find every problem in it.

    Args:
        search_path: the folders that Hydra searches, see `initialized`.
        config_name: the primary config's name.
        overrides: the command line's overrides, as typed.
        schema: the dataclass of the top level's keys.
        multirun: the command line asks for a sweep. Each value of each sweep is checked beside the first of the others;
            of a range, the first.
        complete: missing values are problems; False for a config that is displayed and not run, for which nothing is imported.
    """
    root, composer, parsed, problems = prepare(search_path, config_name, overrides, schema)
    if composer is None:
        return Verdict(problems, multirun)
    jobs = variants(parsed)
    first = composer.compose(next(jobs), multirun=multirun)
    if first.config is not None and first.config.hydra.mode == RunMode.MULTIRUN:
        multirun = True
    if multirun and first.config is not None:
        of_sweeper, broken = _sweeper_settings(first, {override.get_key_element() for override in parsed})
        problems += broken
        jobs = variants([*of_sweeper, *parsed])
        first = composer.compose(next(jobs), multirun=True)
    problems += [wrong for override in parsed if (wrong := wrong_sweep(override, multirun=multirun)) is not None]
    compositions = [first, *(composer.compose(job, multirun=True) for job in (jobs if multirun else ()))]
    problems += find_problems([Check(composer, each, root, schema) for each in compositions], problems, complete)
    dry_run = first.config is not None and bool(OmegaConf.select(first.config, "dry_run"))
    unreadable = {problem.key for problem in problems if problem.code == "override-needs-quotes"}
    problems = [each for each in problems if each.code != "value-missing" or each.key not in unreadable]
    return Verdict(distinct(problems), multirun, dry_run, without_hydra(first.config))


def prepare(
    search_path: Sequence[str], config_name: str, overrides: Sequence[str], schema: type
) -> tuple[Signature, Composer | None, list[ParsedOverride], list[Problem]]:
    """What a check starts from: the schema's keys, a composer, the overrides that can be read, and the problems so far."""
    setup_globals()
    root = signature_of(schema)
    assert root is not None
    parsed, problems = parse(overrides, [on_command_line(line) for line in overrides])
    try:
        composer = Composer(search_path, config_name, parsed)
    except ConfigError as error:
        return root, None, parsed, [*problems, Problem("config search path", "", error)]
    for override in parsed:
        override.config_loader = composer.loader  # a glob asks it for the options
    return root, composer, parsed, problems


def find_problems(checks: Sequence[Check], known: Sequence[Problem], complete: bool) -> list[Problem]:
    """All problems of some compositions; those in the arguments of targets once their names are right.

    Args:
        checks: one for each composition.
        known: the problems found before.
        complete: see `check`.
    """
    found = [problem for each in checks for problem in each.run(complete, imports=False)]
    if complete and all(problem.code in _OF_VALUES for problem in (*known, *found)):
        return [problem for each in checks for problem in each.run(complete, imports=True)]
    return found


def without_hydra(config: DictConfig | None) -> DictConfig | None:
    """A composed config's own keys."""
    return None if config is None else OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])


def distinct(problems: Iterable[Problem]) -> list[Problem]:
    """The problems in order, of those that read alike the first."""
    found: dict[str, Problem] = {}
    for problem in problems:
        found.setdefault(str(problem), problem)
    return list(found.values())


def _sweeper_settings(composition: Composition, typed: set[str]) -> tuple[list[ParsedOverride], list[Problem]]:
    """What the sweeper's own parameters (`hydra.sweeper.params`) set, where the command line does not."""
    params = OmegaConf.select(composition.config, "hydra.sweeper.params") or {}
    sources: dict[tuple[str, ...], str] = {}
    for file in composition.files:
        sources |= {(*file.package, *path): entry.source for path, entry in file.content.walk()}
    keys = [key for key in params if key not in typed]
    place = ("hydra", "sweeper", "params")
    lines = [f"{key}={params[key]}" for key in keys]
    return parse(lines, [sources.get((*place, key), ".".join((*place, key))) for key in keys])

"""Composition of a config by Hydra, with all problems collected.

Hydra stops at the first config or override that it cannot find, read or merge. `Composer` composes again without it, or with
the nearest valid name, until composition succeeds. Files are read through a `Repository`, which repairs invalid files.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.types import OverrideType
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from ret_lightning.config.checker.config_repository import CheckedSource, ConfigFile, Repository, package_path
from ret_lightning.config.checker.overrides import ParsedOverride
from ret_lightning.config.checker.yaml_files import Entry, first_line
from ret_lightning.config.config_errors import COMMAND_LINE, Problem, choices, nearest
from ret_lightning.config.initialization import hydra_initialized
from ret_lightning.errors import ConfigError

# Options of Hydra's groups that plugins provide, and the extra of this package that installs the plugin.
_PLUGINS = {
    "joblib": "joblib", "optuna": "optuna", "submitit_local": "slurm", "submitit_slurm": "slurm", "slurm_4gpu": "slurm",
}  # fmt: skip

_FILE = re.compile(r"In '?([\w./-]+)'?: ?")  # how Hydra's messages name a config
_UNUSED = re.compile(
    r"(?:In '(?P<file>[^']+)': )?(?:Could not override|Could not delete|Invalid Defaults List override)"
    r" '(?P<key>[^':=]+)[^']*'"
)
_STORED = "stored_config"  # name of the config that `apply` adds to the repository
_MISSING = object()


@dataclass(frozen=True)
class _Unused:
    """A choice for a group that is not in the defaults list.

    Attributes:
        key: key of the group.
        source: source of the choice.
        problem_key: key of the reported problem.
        hint: how to add the group to the defaults list.
        is_deletion: whether the choice removes the group.
    """

    key: str
    source: str
    problem_key: str
    hint: str = ""
    is_deletion: bool = False


@dataclass
class Composition:
    """The result of composing files and overrides.

    Attributes:
        config: the composed config; None if composition failed.
        files: the files that were merged, in the order of precedence; later files override earlier ones.
        overrides: the overrides that set keys, in the order of precedence.
        refused: overrides that Hydra did not apply, with the error.
        problems: problems found.
        unknown_paths: config paths whose content is missing because of a problem.
        is_complete: False if content is missing because of a problem.
    """

    config: DictConfig | None = None
    files: list[ConfigFile] = field(default_factory=list)
    overrides: list[ParsedOverride] = field(default_factory=list)
    refused: list[tuple[ParsedOverride, ConfigError]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    unknown_paths: set[tuple[str, ...]] = field(default_factory=set)
    is_complete: bool = True


class Composer:
    """Composes one primary config with different overrides; each file is read once.

    Args:
        search_path: folders of the configs as Hydra URIs, the main folder first.
        config_name: name of the primary config.
        overrides: overrides of the command line; only `hydra.searchpath` is used.

    Raises:
        ConfigError: if the main folder does not exist, or `hydra.searchpath` is not a list of folders.
    """

    def __init__(self, search_path: Sequence[str], config_name: str, overrides: Sequence[ParsedOverride]) -> None:
        self.config_name = config_name
        self.repository = Repository(search_path)
        if not (self.repository.folders and self.repository.folders[0].is_dir()):
            text = f"{search_path[0]}: config folder or package not found"
            raise ConfigError(text, code="config-folder-missing", found=search_path[0])
        self.repository.add_folders(self._further_folders(overrides))
        Plugins.instance().register(CheckedSource)
        with hydra_initialized([self.repository.uri], config_name) as hydra:
            self.loader = hydra.config_loader()
        self.repository.sources = self.loader.get_sources()

    def _further_folders(self, overrides: Sequence[ParsedOverride]) -> list[str]:
        """Return the folders of `hydra.searchpath`, from the command line or else from the primary config."""
        given = [each.value() for each in overrides if each.get_key_element() == "hydra.searchpath"]
        if not given and (file := self.repository.file_of(self.config_name)) is not None:
            given = [_read_searchpath(file)]
        folders = given[0] if given and given[0] is not None else []
        if not isinstance(folders, list | ListConfig) or not all(isinstance(folder, str) for folder in folders):
            text = f"hydra.searchpath={folders}: expected a list of folders, such as [conf,file:///more/conf]"
            raise ConfigError(text, code="search-path-no-list", key="hydra.searchpath", found=folders)
        return list(folders)

    def compose(self, overrides: Sequence[ParsedOverride], *, multirun: bool) -> Composition:
        """Compose the config with some overrides.

        Args:
            overrides: the overrides, without sweeps.
            multirun: whether the config is composed for a job of a sweep.
        """
        result = Composition()
        if not self.repository.config_exists(self.config_name):
            text = f"unknown config{choices(self.config_name, self.repository.options(''))}"
            unknown = ConfigError(text, code="unknown-config-name", found=self.config_name)
            result.problems.append(Problem(f"{COMMAND_LINE}--config-name {self.config_name}", "", unknown))
            return result
        usable = [valid for override in overrides if (valid := self._repair_override(override, result)) is not None]
        mode = RunMode.MULTIRUN if multirun else RunMode.RUN
        unused: list[_Unused] = []
        try:
            defaults = self._defaults(usable, mode, unused)
            result.files = self.repository.files(defaults)
            result.overrides = [each for each in usable if self._sets_key(each)]
            result.config = self._merged(self.config_name, usable, result, mode)
        except (HydraException, OmegaConfBaseException, ValueError, AssertionError) as error:
            if (added := _find_added_twice(error, overrides)) is not None:
                return self._compose_with_change(added, overrides, multirun)
            result.problems += [*self.repository.problems, self._to_problem(error)]
            return result
        if self.repository.is_complete:
            self._report_unused(unused, result)
        result.problems += self.repository.problems
        result.unknown_paths |= self.repository.unknown_paths
        result.is_complete = result.is_complete and self.repository.is_complete
        result.files = self.repository.files(defaults)  # without files that were dropped during the merge
        return result

    def apply(self, config: Mapping[str, Any], overrides: Sequence[ParsedOverride]) -> Composition:
        """Apply overrides to a stored config. Overrides that Hydra does not apply are listed in `refused`."""
        self.repository.store(_STORED, config)
        result = Composition(files=[], overrides=list(overrides))
        result.config = self._merged(_STORED, list(overrides), result, RunMode.RUN)
        return result

    def _sets_key(self, override: ParsedOverride) -> bool:
        """Return whether an override sets a key instead of choosing an option of a group."""
        return isinstance(override.value(), dict) or not self.repository.group_exists(override.key_or_group)

    def _defaults(self, usable: list[ParsedOverride], mode: RunMode, unused: list[_Unused]) -> Sequence[Any]:
        """Return the defaults list.

        Choices for groups that are not in the list are moved from `usable`, or from their file, to `unused`.
        """
        while True:
            try:
                lines = [each.input_line for each in usable if not self._sets_key(each)]
                return self.loader.compute_defaults_list(self.config_name, lines, mode).defaults
            except HydraException as error:
                found = _UNUSED.match(str(error))
                if found is None or not self._remove_unused(found, usable, unused):
                    raise

    def _remove_unused(self, found: re.Match[str], usable: list[ParsedOverride], unused: list[_Unused]) -> bool:
        key = found["key"]
        if found["file"] is not None:
            source = self.repository.drop_default(found["file"], key)
            unused.append(_Unused(key, str(source), "defaults"))
            return source is not None
        for override in usable:
            if override.get_key_element().lstrip("+~") == key:
                hint = "" if override.is_delete() else f"; to add it, use +{override.input_line}"
                unused.append(_Unused(key, override.source, key, hint, override.is_delete()))
                usable.remove(override)
                return True
        return False

    def _report_unused(self, unused: Sequence[_Unused], result: Composition) -> None:
        """Add a problem for each choice of a group that is not in the defaults list."""
        chosen = result.config.hydra.runtime.choices if result.config is not None else {}
        known = sorted(str(key) for key in chosen if not str(key).startswith("hydra/"))
        for each in unused:
            hint = f"{each.hint}{_suggest_group(each.key, known)}"
            if each.is_deletion:
                text = f"cannot remove {each.key}: it is not in the defaults list{hint}"
                error = ConfigError(text, code="deleted-group-missing", group=each.key, allowed=tuple(known))
            else:
                text = f"cannot override {each.key}: it is not in the defaults list{hint}"
                error = ConfigError(text, code="overridden-group-missing", group=each.key, allowed=tuple(known))
            result.problems.append(Problem(each.source, each.problem_key, error))

    def _merged(self, config_name: str, usable: list[ParsedOverride], result: Composition, mode: RunMode) -> DictConfig:
        """Return the merged config without files, `hydra` nodes and overrides that cannot be merged."""
        for override in result.overrides:
            stored = [] if config_name == self.config_name else [self.repository.stored_file(config_name)]
            earlier = result.overrides[: result.overrides.index(override)]
            if (reason := _check_below_interpolation(override, [*stored, *result.files], earlier)) is not None:
                result.refused.append((override, reason))
                usable.remove(override)
        while True:
            lines = [each.input_line for each in usable]
            try:
                config = self.loader.load_configuration(config_name, lines, mode)
                break
            except (HydraException, OmegaConfBaseException, AssertionError) as error:
                if not self._remove_refused(error, config_name, usable, result, mode) and not self._drop_file(error):
                    raise
        result.refused.sort(key=lambda refused: result.overrides.index(refused[0]))
        with open_dict(config.hydra):
            config.hydra.runtime.output_dir = os.getcwd()  # placeholder: the folder is created when the job starts
            config.hydra.job.id, config.hydra.job.num = "0", 0
            config.hydra.mode = config.hydra.mode or RunMode.RUN
        return config

    def _remove_refused(
        self, error: Exception, config_name: str, usable: list[ParsedOverride], result: Composition, mode: RunMode
    ) -> bool:
        """Remove the override that Hydra did not apply; return False if the error has another cause."""
        keys = [each for each in usable if each in result.overrides]
        message = first_line(error)
        refused = [
            each for each in keys if f"'{each.key_or_group}'" in message or message.endswith(f" {each.input_line}")
        ]
        if _FILE.match(message):
            return False
        if not refused and isinstance(error, AssertionError):
            refused = [each for each in keys if not self._applies(each, config_name, usable, keys, mode)]
        if not refused:
            return False
        reason = ConfigError(first_line(error.__cause__ or error), code="override-refused")
        result.refused.append((refused[0], reason))
        usable.remove(refused[0])
        return True

    def _applies(
        self,
        override: ParsedOverride,
        config_name: str,
        usable: Sequence[ParsedOverride],
        keys: Sequence[ParsedOverride],
        mode: RunMode,
    ) -> bool:
        """Return whether Hydra applies this override without the other overrides that set keys."""
        lines = [each.input_line for each in usable if each is override or each not in keys]
        try:
            self.loader.load_configuration(config_name, lines, mode)
        except (HydraException, OmegaConfBaseException, AssertionError):
            return False
        return True

    def _drop_file(self, error: Exception) -> bool:
        """Drop the file that Hydra could not merge; return False if the error has another cause."""
        problem, named = self._to_problem(error), _FILE.match(str(error))
        if named is None or not self.repository.drop(named[1], hydra_only=problem.key.startswith("hydra")):
            return False
        self.repository.problems.append(problem)
        return True

    def _compose_with_change(
        self, added: ParsedOverride, overrides: Sequence[ParsedOverride], multirun: bool
    ) -> Composition:
        """Compose again with `group=option` in place of `+group=option`, for a group that is in the defaults list."""
        changed = copy.copy(added)
        changed.type, changed.input_line = OverrideType.CHANGE, added.input_line.lstrip("+")
        others = [changed if override is added else override for override in overrides]
        result = self.compose(others, multirun=multirun)
        key = changed.get_key_element()
        text = f"{key} is already in the defaults list; to choose another option, remove the +"
        error = ConfigError(text, code="group-added-twice", group=key)
        result.problems.insert(0, Problem(added.source, key, error))
        return result

    def _repair_override(self, override: ParsedOverride, result: Composition) -> ParsedOverride | None:
        """Return the override with a misspelt option replaced by the nearest; None if there is none near."""
        group, key = override.key_or_group, override.get_key_element().lstrip("+~")
        value = override.value()
        if not self.repository.group_exists(group):
            if override.package is None and "/" not in group:
                return override  # it sets a key
            result.problems.append(Problem(override.source, key, self.repository.no_such_group(group)))
            return None
        if isinstance(value, dict) or override.is_delete():
            return override
        names = value if isinstance(value, list) else [value]
        unknown = [name for name in names if not self._is_option(group, name)]
        if not unknown:
            return override
        options = self.repository.options(group)
        for name in unknown:
            hint = f"; to remove the group, use ~{key}" if name is None else ""
            if (extra := _PLUGINS.get(str(name))) and group.startswith("hydra/"):
                hint = f"; to install {name}: pip install 'ret_lightning[{extra}]'"
            result.problems.append(Problem(override.source, key, self.repository.no_such_option(group, name, hint)))
        meant = [] if isinstance(value, list) else nearest(str(value), options)
        if not meant:
            result.unknown_paths.add(package_path(override.package, group))
            result.is_complete = result.is_complete and group.startswith("hydra/")
            return None
        replaced = copy.copy(override)
        replaced._value, replaced.input_line = meant[0], f"{override.get_key_element()}={meant[0]}"
        return replaced

    def _is_option(self, group: str, name: object) -> bool:
        if not isinstance(name, str):
            return False
        return name == "???" or "${" in name or self.repository.config_exists(f"{group}/{name}")

    def _to_problem(self, error: Exception) -> Problem:
        """Convert an exception of Hydra to a problem with the file, the key and the first informative line."""
        lines = [line.strip() for line in f"{error}\n{error.__cause__ or ''}".splitlines() if line.strip()]
        named = _FILE.match(lines[0]) if lines else None
        key = next((line.removeprefix("full_key:").strip() for line in lines if line.startswith("full_key:")), "")
        if named:
            lines = [lines[0].removeprefix(named[0]), *lines[1:]]
        informative = [line for line in lines if line and "raised while composing config" not in line]
        source = self.repository.source_of(named[1], key) if named else f"config {self.config_name}"
        text = informative[0] if informative else type(error).__name__
        return Problem(source, key, ConfigError(text, code="config-not-composed"))


def _read_searchpath(file: Path) -> Any:
    """Return `hydra.searchpath` of a primary config; None if it is not set or the file cannot be read."""
    try:
        return OmegaConf.select(OmegaConf.load(file), "hydra.searchpath")
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException):
        return None  # reported when the file is loaded


def _check_below_interpolation(
    override: ParsedOverride, files: Sequence[ConfigFile], earlier: Sequence[ParsedOverride]
) -> ConfigError | None:
    """Return the error of a key below an interpolation, which Hydra would replace by a mapping with that key only."""
    for depth in range(1, len(override.path)):
        above = override.path[:depth]
        values = [
            _value_at(file.content, above[len(file.package) :]) for file in files if _is_inside(file.package, above)
        ]
        values += [each.value() for each in earlier if each.path == above and not each.is_delete()]
        set_ = [value for value in values if value is not _MISSING]
        if set_ and isinstance(set_[-1], str) and "${" in set_[-1]:
            raw = set_[-1]
            other = ".".join([raw[2:-1], *override.path[depth:]]) if re.fullmatch(r"\$\{[\w.]+\}", raw) else ""
            text = f"{'.'.join(above)} is the interpolation {raw}{f'; set {other} instead' if other else ''}"
            return ConfigError(text, code="key-below-interpolation", found=raw)
    return None


def _is_inside(package: tuple[str, ...], path: tuple[str, ...]) -> bool:
    return path[: len(package)] == package and len(path) > len(package)


def _value_at(content: Entry, path: Sequence[str]) -> Any:
    """Return the value of a file at a path, or `_MISSING`."""
    entry = content
    for part in path:
        if not isinstance(entry.value, dict) or part not in entry.value:
            return _MISSING
        entry = entry.value[part]
    return entry.value


def _find_added_twice(error: Exception, overrides: Sequence[ParsedOverride]) -> ParsedOverride | None:
    """Return the override that added a group to the defaults list a second time; None if the error has another cause."""
    found = re.match(r"Multiple values for (\S+)\.|(\S+) appears more than once in the final defaults list", str(error))
    keys = found.groups() if found else ()
    return next((each for each in overrides if each.is_add() and each.get_key_element()[1:] in keys), None)


def _suggest_group(key: str, known: Sequence[str]) -> str:
    """Return the end of a message about a missing group: its other packages in the defaults list, or the known groups."""
    same = [other for other in known if other.partition("@")[0] == key.partition("@")[0]]
    return f"; did you mean {' or '.join(same)}?" if same else choices(key, known)

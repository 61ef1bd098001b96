"""A config composed by Hydra, with every problem collected.

Hydra stops at the first thing that it cannot find, read or merge. Here it is asked again without what it stopped at, or with
what was probably meant, until it succeeds. It reads the files through a `Repository`, which repairs what it can.
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

from ret_lightning.config.checker.config_repository import CheckedSource, ConfigFile, Repository, place_of
from ret_lightning.config.checker.overrides import ParsedOverride
from ret_lightning.config.checker.yaml_files import Entry, first_line
from ret_lightning.config.config_errors import COMMAND_LINE, Problem, choices, nearest
from ret_lightning.config.initialization import initialized
from ret_lightning.errors import ConfigError

# Options of Hydra's groups that its plugins bring, and the extra of ours that installs them.
_PLUGINS = {
    "joblib": "joblib", "optuna": "optuna", "submitit_local": "slurm", "submitit_slurm": "slurm", "slurm_4gpu": "slurm",
}  # fmt: skip

_FILE = re.compile(r"In '?([\w./-]+)'?: ?")  # how Hydra's messages name a config
_UNUSED = re.compile(
    r"(?:In '(?P<file>[^']+)': )?(?:Could not override|Could not delete|Invalid Defaults List override)"
    r" '(?P<key>[^':=]+)[^']*'"
)
_STORED = "stored_config"  # the name of a config that is in no file
_NOTHING = object()


@dataclass(frozen=True)
class _Unused:
    """A choice for a group that the defaults list does not have: its key, who made it, and what to do about it."""

    key: str
    source: str
    at: str
    hint: str = ""
    deleted: bool = False


@dataclass
class Composition:
    """What came of the files and overrides.

    `config` is None where nothing could be put together. `files` and `overrides` are in the order in which later ones
    win; `refused` are overrides that Hydra would not apply, with its reason. `whole` is False where content is missing
    because of one of the problems, and `unsure` are the places where it is missing.
    """

    config: DictConfig | None = None
    files: list[ConfigFile] = field(default_factory=list)
    overrides: list[ParsedOverride] = field(default_factory=list)
    refused: list[tuple[ParsedOverride, ConfigError]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    unsure: set[tuple[str, ...]] = field(default_factory=set)
    whole: bool = True


class Composer:
    """Composes one primary config again and again with different overrides; each file is read once.

    Raises:
        ConfigError: the folder of the configs does not exist, or `hydra.searchpath` is no list of folders.
    """

    def __init__(self, search_path: Sequence[str], config_name: str, overrides: Sequence[ParsedOverride]) -> None:
        self.config_name = config_name
        self.repository = Repository(search_path)
        if not (self.repository.folders and self.repository.folders[0].is_dir()):
            text = f"{search_path[0]}: the folder or package of the configs does not exist"
            raise ConfigError(text, code="config-folder-missing", found=search_path[0])
        self.repository.add_folders(self._further_folders(overrides))
        Plugins.instance().register(CheckedSource)
        with initialized([self.repository.uri], config_name) as hydra:
            self.loader = hydra.config_loader()
        self.repository.sources = self.loader.get_sources()

    def _further_folders(self, overrides: Sequence[ParsedOverride]) -> list[str]:
        """The folders of `hydra.searchpath`, on the command line or else in the primary config."""
        given = [each.value() for each in overrides if each.get_key_element() == "hydra.searchpath"]
        if not given and (file := self.repository.file_of(self.config_name)) is not None:
            given = [_searchpath(file)]
        folders = given[0] if given and given[0] is not None else []
        if not isinstance(folders, list | ListConfig) or not all(isinstance(folder, str) for folder in folders):
            text = f"hydra.searchpath must be a list of folders, got {folders}"
            raise ConfigError(text, code="search-path-no-list", found=folders)
        return list(folders)

    def compose(self, overrides: Sequence[ParsedOverride], *, multirun: bool) -> Composition:
        """The config that these overrides give; none of them is a sweep."""
        result = Composition()
        if not self.repository.config_exists(self.config_name):
            text = f"no config has this name{choices(self.config_name, self.repository.options(''))}"
            wrong = ConfigError(text, code="unknown-config-name", found=self.config_name)
            result.problems.append(Problem(f"{COMMAND_LINE}--config-name {self.config_name}", "", wrong))
            return result
        usable = [fit for override in overrides if (fit := self._usable(override, result)) is not None]
        mode = RunMode.MULTIRUN if multirun else RunMode.RUN
        unused: list[_Unused] = []
        try:
            defaults = self._defaults(usable, mode, unused)
            result.files = self.repository.files(defaults)
            result.overrides = [each for each in usable if self._sets_key(each)]
            result.config = self._merged(self.config_name, usable, result, mode)
        except (HydraException, OmegaConfBaseException, ValueError, AssertionError) as error:
            if (added := _added_twice(error, overrides)) is not None:
                return self._compose_changing(added, overrides, multirun)
            result.problems += [*self.repository.problems, self._told(error)]
            return result
        if self.repository.whole:
            self._note_unused(unused, result)
        result.problems += self.repository.problems
        result.unsure |= self.repository.unsure
        result.whole = result.whole and self.repository.whole
        result.files = self.repository.files(defaults)  # without those that do not fit
        return result

    def apply(self, config: Mapping[str, Any], overrides: Sequence[ParsedOverride]) -> Composition:
        """A stored config with overrides of its keys; those that Hydra would not apply are refused."""
        self.repository.store(_STORED, config)
        result = Composition(files=[], overrides=list(overrides))
        result.config = self._merged(_STORED, list(overrides), result, RunMode.RUN)
        return result

    def _sets_key(self, override: ParsedOverride) -> bool:
        """Whether an override sets a key, and does not choose an option of a group."""
        return isinstance(override.value(), dict) or not self.repository.group_exists(override.key_or_group)

    def _defaults(self, usable: list[ParsedOverride], mode: RunMode, unused: list[_Unused]) -> Sequence[Any]:
        """The defaults list; what overrides nothing in it is removed from `usable` or its file, and noted as unused."""
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
                hint = "" if override.is_delete() else f"; to add it write +{override.input_line}"
                unused.append(_Unused(key, override.source, key, hint, override.is_delete()))
                usable.remove(override)
                return True
        return False

    def _note_unused(self, unused: Sequence[_Unused], result: Composition) -> None:
        """Choices for groups that the defaults list does not have."""
        chosen = result.config.hydra.runtime.choices if result.config is not None else {}
        known = sorted(str(key) for key in chosen if not str(key).startswith("hydra/"))
        for each in unused:
            hint = f"{each.hint}{_same_group(each.key, known)}"
            if each.deleted:
                text = f"the defaults list has no {each.key} to leave out{hint}"
                wrong = ConfigError(text, code="deleted-group-missing", group=each.key, allowed=tuple(known))
            else:
                text = f"the defaults list has no {each.key} to override{hint}"
                wrong = ConfigError(text, code="overridden-group-missing", group=each.key, allowed=tuple(known))
            result.problems.append(Problem(each.source, each.at, wrong))

    def _merged(self, config_name: str, usable: list[ParsedOverride], result: Composition, mode: RunMode) -> DictConfig:
        """The config, without the files (or their `hydra` sections) and the overrides that do not fit the others."""
        for override in result.overrides:
            stored = [] if config_name == self.config_name else [self.repository.stored_file(config_name)]
            earlier = result.overrides[: result.overrides.index(override)]
            if (reason := _behind_interpolation(override, [*stored, *result.files], earlier)) is not None:
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
            config.hydra.runtime.output_dir = os.getcwd()  # a stand-in: the folder is made when the job starts
            config.hydra.job.id, config.hydra.job.num = "0", 0
            config.hydra.mode = config.hydra.mode or RunMode.RUN
        return config

    def _remove_refused(
        self, error: Exception, config_name: str, usable: list[ParsedOverride], result: Composition, mode: RunMode
    ) -> bool:
        """Remove the override that Hydra did not apply; False where it stopped at something else."""
        keys = [each for each in usable if each in result.overrides]
        said = first_line(error)
        refused = [each for each in keys if f"'{each.key_or_group}'" in said or said.endswith(f" {each.input_line}")]
        if _FILE.match(said):
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
        """Whether Hydra applies this override without the others that set keys."""
        lines = [each.input_line for each in usable if each is override or each not in keys]
        try:
            self.loader.load_configuration(config_name, lines, mode)
        except (HydraException, OmegaConfBaseException, AssertionError):
            return False
        return True

    def _drop_file(self, error: Exception) -> bool:
        """Leave out the file that Hydra could not merge; False where it stopped at something else."""
        problem, named = self._told(error), _FILE.match(str(error))
        if named is None or not self.repository.drop(named[1], hydra_only=problem.key.startswith("hydra")):
            return False
        self.repository.problems.append(problem)
        return True

    def _compose_changing(
        self, added: ParsedOverride, overrides: Sequence[ParsedOverride], multirun: bool
    ) -> Composition:
        """Go on as if a choice that was added to a defaults list which has the group already had been a change of it."""
        changed = copy.copy(added)
        changed.type, changed.input_line = OverrideType.CHANGE, added.input_line.lstrip("+")
        others = [changed if override is added else override for override in overrides]
        result = self.compose(others, multirun=multirun)
        key = changed.get_key_element()
        text = f"the defaults list has {key} already; to choose another option leave out the +"
        wrong = ConfigError(text, code="group-added-twice", group=key)
        result.problems.insert(0, Problem(added.source, key, wrong))
        return result

    def _usable(self, override: ParsedOverride, result: Composition) -> ParsedOverride | None:
        """The override, with a misspelt option replaced by the nearest; None where there is nothing to go on with."""
        group, key = override.key_or_group, override.get_key_element().lstrip("+~")
        value = override.value()
        if not self.repository.group_exists(group):
            if override.package is None and "/" not in group:
                return override  # it sets a key
            result.problems.append(Problem(override.source, key, self.repository.no_such_group(group)))
            return None
        if isinstance(value, dict) or override.is_delete():
            return override
        wrong = [name for name in (value if isinstance(value, list) else [value]) if not self._is_option(group, name)]
        if not wrong:
            return override
        options = self.repository.options(group)
        for name in wrong:
            hint = f"; to leave the group out write ~{key}" if name is None else ""
            if (extra := _PLUGINS.get(str(name))) and group.startswith("hydra/"):
                hint = f"; {name} comes with pip install 'ret_lightning[{extra}]'"
            result.problems.append(Problem(override.source, key, self.repository.no_such_option(group, name, hint)))
        meant = [] if isinstance(value, list) else nearest(str(value), options)
        if not meant:
            result.unsure.add(place_of(override.package, group))
            result.whole = result.whole and group.startswith("hydra/")
            return None
        replaced = copy.copy(override)
        replaced._value, replaced.input_line = meant[0], f"{override.get_key_element()}={meant[0]}"
        return replaced

    def _is_option(self, group: str, name: object) -> bool:
        if not isinstance(name, str):
            return False
        return name == "???" or "${" in name or self.repository.config_exists(f"{group}/{name}")

    def _told(self, error: Exception) -> Problem:
        """A failure of Hydra's as a problem: the file and the key it names, and the first line that says something."""
        lines = [line.strip() for line in f"{error}\n{error.__cause__ or ''}".splitlines() if line.strip()]
        named = _FILE.match(lines[0]) if lines else None
        key = next((line.removeprefix("full_key:").strip() for line in lines if line.startswith("full_key:")), "")
        if named:
            lines = [lines[0].removeprefix(named[0]), *lines[1:]]
        telling = [line for line in lines if line and "raised while composing config" not in line]
        source = self.repository.source_of(named[1], key) if named else f"config {self.config_name}"
        wrong = ConfigError(telling[0] if telling else type(error).__name__, code="config-not-composed")
        return Problem(source, key, wrong)


def _searchpath(file: Path) -> Any:
    """The key `hydra.searchpath` of a primary config; None where it has none, or cannot be read."""
    try:
        return OmegaConf.select(OmegaConf.load(file), "hydra.searchpath")
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException):
        return None  # reported when the file is loaded


def _behind_interpolation(
    override: ParsedOverride, files: Sequence[ConfigFile], earlier: Sequence[ParsedOverride]
) -> ConfigError | None:
    """Why a key below an interpolation cannot be set: Hydra would put a mapping with that one key in its place."""
    for depth in range(1, len(override.path)):
        above = override.path[:depth]
        values = [_value_at(file.content, above[len(file.package) :]) for file in files if _covers(file.package, above)]
        values += [each.value() for each in earlier if each.path == above and not each.is_delete()]
        set_ = [value for value in values if value is not _NOTHING]
        if set_ and isinstance(set_[-1], str) and "${" in set_[-1]:
            raw = set_[-1]
            other = ".".join([raw[2:-1], *override.path[depth:]]) if re.fullmatch(r"\$\{[\w.]+\}", raw) else ""
            text = f"{'.'.join(above)} is {raw}{f'; set {other} in its place' if other else ''}"
            return ConfigError(text, code="key-below-interpolation", found=raw)
    return None


def _covers(package: tuple[str, ...], path: tuple[str, ...]) -> bool:
    return path[: len(package)] == package and len(path) > len(package)


def _value_at(content: Entry, path: Sequence[str]) -> Any:
    """A file's value at a path, or `_NOTHING`."""
    entry = content
    for part in path:
        if not isinstance(entry.value, dict) or part not in entry.value:
            return _NOTHING
        entry = entry.value[part]
    return entry.value


def _added_twice(error: Exception, overrides: Sequence[ParsedOverride]) -> ParsedOverride | None:
    """The override that Hydra means when it says that a group is in the defaults list twice."""
    said = re.match(r"Multiple values for (\S+)\.|(\S+) appears more than once in the final defaults list", str(error))
    keys = said.groups() if said else ()
    return next((each for each in overrides if each.is_add() and each.get_key_element()[1:] in keys), None)


def _same_group(key: str, known: Sequence[str]) -> str:
    """The end of a message about a group that a defaults list does not have: where it has it, or what it has."""
    same = [other for other in known if other.partition("@")[0] == key.partition("@")[0]]
    return f"; did you mean {' or '.join(same)}?" if same else choices(key, known)

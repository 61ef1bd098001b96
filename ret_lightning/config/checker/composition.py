"""A config put together as Hydra puts it together, except that nothing stops it.

Hydra ends at the first thing that it cannot find, read or merge. To tell all mistakes at once, this goes the same way
through Hydra's own parts (the defaults list, the files, the overrides), writes down each mistake, and goes on without the
piece, or with what was probably meant.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra import __version__, version
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.defaults_list import Overrides, _create_defaults_list
from hydra.conf import ConfigSourceInfo
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.types import OverrideType
from hydra.core.utils import JobRuntime
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from ret_lightning.config.checker.config_repository import ConfigFile, Repository, place_of
from ret_lightning.config.checker.overrides import ParsedOverride
from ret_lightning.config.checker.yaml_files import first_line
from ret_lightning.config.config_errors import COMMAND_LINE, Mistake, choices, nearest
from ret_lightning.errors import ConfigError

# Options of Hydra's groups that its plugins bring, and the extra of ours that installs them.
_PLUGINS = {
    "joblib": "joblib", "optuna": "optuna", "submitit_local": "slurm", "submitit_slurm": "slurm", "slurm_4gpu": "slurm",
}  # fmt: skip

_FILE = re.compile(r"In '?([\w./-]+)'?: ?")  # how Hydra's messages name a config


@dataclass
class Composition:
    """What came of the files and overrides.

    `config` is None where nothing could be put together. `files` and `overrides` are in the order in which later ones
    win; `refused` are overrides that Hydra would not apply, with its reason. `whole` is False where content is missing
    because of one of the mistakes, and `unsure` are the places where it is missing.
    """

    config: DictConfig | None = None
    files: list[ConfigFile] = field(default_factory=list)
    overrides: list[ParsedOverride] = field(default_factory=list)
    refused: list[tuple[ParsedOverride, ConfigError]] = field(default_factory=list)
    mistakes: list[Mistake] = field(default_factory=list)
    unsure: set[tuple[str, ...]] = field(default_factory=set)
    whole: bool = True


class Composer:
    """Composes one primary config again and again with different overrides; each file is read once.

    Raises:
        hydra.errors.HydraException: the folder of the configs is not there, or `hydra.searchpath` is no list of folders.
    """

    def __init__(self, search_path: ConfigSearchPath, config_name: str, overrides: Sequence[ParsedOverride]) -> None:
        self.config_name = config_name
        self.loader = ConfigLoaderImpl(search_path)
        self.loader.ensure_main_config_source_available()
        self.repository = Repository(self.loader.repository)
        self.loader._process_config_searchpath(config_name, list(overrides), self.repository)

    def compose(self, overrides: Sequence[ParsedOverride], *, multirun: bool) -> Composition:
        """The config that these overrides give; none of them is a sweep."""
        result = Composition()
        if not self.repository.config_exists(self.config_name):
            text = f"no config has this name{choices(self.config_name, self.repository.options(''))}"
            wrong = ConfigError(text, code="unknown-config-name", found=self.config_name)
            result.mistakes.append(Mistake(f"{COMMAND_LINE}--config-name {self.config_name}", "", wrong))
            return result
        usable = [fit for override in overrides if (fit := self._usable(override, result)) is not None]
        try:
            choice = Overrides(repo=self.repository, overrides_list=usable)
            defaults, _ = _create_defaults_list(
                self.repository, self.config_name, choice, prepend_hydra=True, skip_missing=multirun
            )
            if self.repository.whole:
                self._note_unused(choice, usable, result)
            config = self._merge(defaults)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            if (added := _added_twice(error, overrides)) is not None:
                return self._compose_changing(added, overrides, multirun)
            result.mistakes += [*self.repository.mistakes, self._told(error)]
            return result
        result.mistakes += self.repository.mistakes
        result.unsure |= self.repository.unsure
        result.whole = result.whole and self.repository.whole
        result.files = self.repository.files(defaults)
        result.config, result.overrides = config, choice.config_overrides
        self.apply(result)
        self._complete(config, overrides, choice)
        return result

    def _compose_changing(
        self, added: ParsedOverride, overrides: Sequence[ParsedOverride], multirun: bool
    ) -> Composition:
        """Go on as if a choice that was added to a defaults list which has the group already had been a change of it."""
        changed = copy.copy(added)
        changed.type = OverrideType.CHANGE
        others = [changed if override is added else override for override in overrides]
        result = self.compose(others, multirun=multirun)
        key = changed.get_key_element()
        text = f"the defaults list has {key} already; to choose another option leave out the +"
        wrong = ConfigError(text, code="group-added-twice", group=key)
        result.mistakes.insert(0, Mistake(added.source, key, wrong))
        return result

    def _usable(self, override: ParsedOverride, result: Composition) -> ParsedOverride | None:
        """The override, with a misspelt option replaced by the nearest; None where there is nothing to go on with."""
        group, key = override.key_or_group, override.get_key_element().lstrip("+~")
        value = override.value()
        if not self.repository.group_exists(group):
            if override.package is None and "/" not in group:
                return override  # it sets a key
            result.mistakes.append(Mistake(override.source, key, self.repository.no_such_group(group)))
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
            result.mistakes.append(Mistake(override.source, key, self.repository.no_such_option(group, name, hint)))
        meant = [] if isinstance(value, list) else nearest(str(value), options)
        if not meant:
            result.unsure.add(place_of(override.package, group))
            result.whole = result.whole and group.startswith("hydra/")
            return None
        replaced = copy.copy(override)
        replaced._value = meant[0]
        return replaced

    def _is_option(self, group: str, name: object) -> bool:
        if not isinstance(name, str):
            return False
        return name == "???" or "${" in name or self.repository.config_exists(f"{group}/{name}")

    def _note_unused(self, choice: Overrides, overrides: Sequence[ParsedOverride], result: Composition) -> None:
        """Choices for groups that the defaults list does not have."""
        typed = {override.get_key_element().lstrip("+~"): override for override in overrides}
        known = sorted(key for key in choice.known_choices if not key.startswith("hydra/"))
        for key, made in choice.override_metadata.items():
            if made.used:
                continue
            if made.external_override:
                source, at, hint = typed[key].source, key, f"; to add it write +{typed[key].input_line}"
            else:
                source = self.repository.source_of_default(made.containing_config_path, made.relative_key)
                at, hint = "defaults", ""
            text = f"the defaults list has no {key} to override{hint}{_same_group(key, known)}"
            wrong = ConfigError(text, code="overridden-group-missing", group=key, allowed=tuple(known))
            result.mistakes.append(Mistake(source, at, wrong))
        for key, deletion in choice.deletions.items():
            if not deletion.used:
                text = f"the defaults list has no {key} to leave out{_same_group(key, known)}"
                wrong = ConfigError(text, code="deleted-group-missing", group=key, allowed=tuple(known))
                result.mistakes.append(Mistake(typed[key].source, key, wrong))

    def _merge(self, defaults: list[ResultDefault]) -> DictConfig:
        """The files' contents merged, without the files (or their `hydra` sections) that do not fit the others."""
        while True:
            loaded = copy.deepcopy(self.repository.cache)  # merging shares nodes with what was loaded, and changes them
            try:
                return self.loader._compose_config_from_defaults_list(defaults, self.repository)
            except HydraException as error:
                failure = error
            finally:
                self.repository.cache = loaded
            mistake, named = self._told(failure), _FILE.match(str(failure))
            if named is None or not self.repository.drop(named[1], hydra_only=mistake.key.startswith("hydra")):
                raise failure
            self.repository.mistakes.append(mistake)

    def apply(self, result: Composition) -> None:
        """Apply the overrides to the config; those that Hydra would not apply are noted as refused."""
        result.refused.clear()
        OmegaConf.set_struct(result.config, True)
        OmegaConf.set_readonly(result.config.hydra, False)
        for override in result.overrides:
            if (reason := _behind_interpolation(override, result.config)) is not None:
                result.refused.append((override, reason))
                continue
            try:
                self.loader._apply_overrides_to_config([override], result.config)
            except (HydraException, OmegaConfBaseException, AssertionError) as error:
                reason = ConfigError(first_line(error.__cause__ or error), code="override-refused")
                result.refused.append((override, reason))

    def _complete(self, config: DictConfig, overrides: Sequence[ParsedOverride], choice: Overrides) -> None:
        """Fill in what Hydra knows of a job, so that interpolations of `hydra` resolve as they will in the job."""
        hydra = config.hydra
        of_task = [override for override in overrides if not override.is_hydra_override()]
        with open_dict(hydra):
            hydra.overrides.task = [override.input_line for override in of_task]
            hydra.overrides.hydra = [override.input_line for override in overrides if override.is_hydra_override()]
            hydra.runtime.choices.update(choice.known_choices)
            hydra.runtime.version, hydra.runtime.version_base = __version__, version.getbase()
            hydra.runtime.cwd = os.getcwd()
            hydra.runtime.output_dir = os.getcwd()  # a stand-in: the folder is made when the job starts
            hydra.runtime.config_sources = [
                ConfigSourceInfo(path=source.path, schema=source.scheme(), provider=source.provider)
                for source in self.repository.get_sources()
            ]
            hydra.job.config_name = self.config_name
            hydra.job.id, hydra.job.num = "0", 0
            if "name" not in hydra.job:
                hydra.job.name = JobRuntime.instance().get("name")
            naming = hydra.job.config.override_dirname
            hydra.job.override_dirname = get_overrides_dirname(
                of_task, kv_sep=naming.kv_sep, item_sep=naming.item_sep, exclude_keys=naming.exclude_keys
            )
            hydra.mode = hydra.mode or RunMode.RUN

    def _told(self, error: Exception) -> Mistake:
        """A failure of Hydra's as a mistake: the file and the key it names, and the first line that says something."""
        lines = [line.strip() for line in f"{error}\n{error.__cause__ or ''}".splitlines() if line.strip()]
        named = _FILE.match(lines[0]) if lines else None
        key = next((line.removeprefix("full_key:").strip() for line in lines if line.startswith("full_key:")), "")
        if named:
            lines = [lines[0].removeprefix(named[0]), *lines[1:]]
        telling = [line for line in lines if line and "raised while composing config" not in line]
        source = self.repository.source_of(named[1], key) if named else f"config {self.config_name}"
        wrong = ConfigError(telling[0] if telling else type(error).__name__, code="config-not-composed")
        return Mistake(source, key, wrong)


def _behind_interpolation(override: ParsedOverride, config: DictConfig) -> ConfigError | None:
    """Why a key below an interpolation cannot be set: Hydra would put a mapping with that one key in its place."""
    *above, _ = override.path
    node: Any = config
    for depth, part in enumerate(above, 1):
        if not isinstance(node, DictConfig) or part not in node or OmegaConf.is_missing(node, part):
            return None
        if OmegaConf.is_interpolation(node, part):
            raw = OmegaConf.to_container(node, resolve=False)[part]
            other = ".".join([raw[2:-1], *override.path[depth:]]) if re.fullmatch(r"\$\{[\w.]+\}", raw) else ""
            text = f"{'.'.join(above[:depth])} is {raw}{f'; set {other} in its place' if other else ''}"
            return ConfigError(text, code="key-below-interpolation", found=raw)
        node = node[part]
    return None


def _added_twice(error: Exception, overrides: Sequence[ParsedOverride]) -> ParsedOverride | None:
    """The override that Hydra means when it says that a group is in the defaults list twice."""
    said = re.match(r"Multiple values for (\S+)\.|(\S+) appears more than once in the final defaults list", str(error))
    keys = said.groups() if said else ()
    return next((each for each in overrides if each.is_add() and each.get_key_element()[1:] in keys), None)


def _same_group(key: str, known: Sequence[str]) -> str:
    """The end of a message about a group that a defaults list does not have: where it has it, or what it has."""
    same = [other for other in known if other.partition("@")[0] == key.partition("@")[0]]
    return f"; did you mean {' or '.join(same)}?" if same else choices(key, known)

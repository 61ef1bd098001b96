"""A reader of config files that never fails: what it cannot load or find becomes a problem."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from io import StringIO
from itertools import count
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from hydra.core.default_element import ResultDefault
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import OmegaConf

from ret_lightning.config.checker.yaml_files import Entry, entry_of, what_is_broken, with_lines
from ret_lightning.config.config_errors import Problem, choices, nearest
from ret_lightning.errors import ConfigError


@dataclass(frozen=True)
class ConfigFile:
    """A file that takes part: its content, and the place in the config (`("model", "gate")`) that it goes to."""

    package: tuple[str, ...]
    content: Entry


@dataclass(frozen=True)
class DefaultsEntry:
    """An entry of a defaults list, `override /gate@model.gate: lstm`; without a value it names a config."""

    keywords: tuple[str, ...]
    name: str  # of the group or config
    package: str | None
    value: Any
    names_config: bool

    @classmethod
    def of(cls, item: Any) -> DefaultsEntry:
        """Read an item of a YAML file's defaults list.

        Raises:
            ValueError: it is neither a name nor one pair of a group and its option.
        """
        key, value = next(iter(item.items())) if isinstance(item, dict) and len(item) == 1 else (item, None)
        if not isinstance(key, str) or not key.split():
            raise ValueError(
                f"an entry of a defaults list is a name, or one pair of a group and its option; got {item}"
            )
        *keywords, full = key.split() if isinstance(item, dict) else [key]
        name, at, package = full.partition("@")
        return cls(tuple(keywords), name, package if at else None, value, not isinstance(item, dict))

    @property
    def key(self) -> str:
        """The key as a defaults list has it."""
        return " ".join([*self.keywords, self.name + ("" if self.package is None else f"@{self.package}")])

    def item(self) -> Any:
        """The entry as a YAML file's defaults list has it."""
        return self.key if self.names_config else {self.key: self.value}


class Repository:
    """The configs in some folders, each loaded once; Hydra reads them through a `CheckedSource`.

    A broken file counts as empty, a misspelt entry of a defaults list as the nearest name. `problems` are those met so far.
    `whole` is False once any content is missing because of them, and `unsure` are the places where it is missing, as far as
    that is known.
    """

    def __init__(self, folders: Sequence[str]) -> None:
        self.folders: list[Path] = []
        self.add_folders(folders)
        self.problems: list[Problem] = []
        self.unsure: set[tuple[str, ...]] = set()
        self.whole = True
        self.sources: Sequence[ConfigSource] = ()  # all of Hydra's, once it is initialised with this repository
        self._contents: dict[str, Entry] = {}
        self._results: dict[str, ConfigResult] = {}
        self.uri = f"{CheckedSource.scheme()}://{next(_NUMBERS)}"
        _REPOSITORIES[self.uri] = self

    def add_folders(self, folders: Sequence[str]) -> None:
        """Search these as well, after the others."""
        self.folders += [path for folder in folders if (path := _path_of(folder)) is not None]

    def file_of(self, config_path: str) -> Path | None:
        """The file of a config (`gate/lstm`) in the first folder that has it."""
        files = (folder / f"{config_path.removesuffix('.yaml')}.yaml" for folder in self.folders)
        return next((file for file in files if file.is_file()), None)

    def config_exists(self, config_path: str) -> bool:
        """Whether Hydra finds a config of this name, in these folders or in its own."""
        return any(source.is_config(config_path) for source in self._all_sources())

    def group_exists(self, group: str) -> bool:
        """Whether Hydra finds a group of this name."""
        return any(source.is_group(group) for source in self._all_sources())

    def options(self, group: str) -> list[str]:
        """The options of a group, or the configs that are at the top where the group is empty."""
        return [name for name in self._names(group, ObjectType.CONFIG) if not name.startswith("_")]

    def groups(self, parent: str = "") -> list[str]:
        """All groups that have options, Hydra's own left out."""
        found: list[str] = []
        for name in self._names(parent, ObjectType.GROUP):
            group = f"{parent}/{name}" if parent else name
            if group != "hydra":
                found += ([group] if self.options(group) else []) + self.groups(group)
        return found

    def no_such_group(self, group: str, hint: str | None = None) -> ConfigError:
        """The error of a group that does not exist; without a hint it lists the groups that do."""
        text = f"no such group: {group}{hint or choices(group, self.groups())}"
        return ConfigError(text, code="unknown-group", found=group)

    def no_such_option(self, group: str, option: object, hint: str = "") -> ConfigError:
        """The error of an option that a group does not have."""
        options = self.options(group)
        text = f"{group} has no option {'null' if option is None else option}{choices(option, options)}{hint}"
        return ConfigError(text, code="unknown-option", group=group, found=option, allowed=tuple(options))

    def store(self, config_path: str, config: Mapping[str, Any]) -> None:
        """Add a config that is in no file."""
        self._contents[config_path] = entry_of(dict(config), config_path)
        self._results[config_path] = ConfigResult("main", self.uri, OmegaConf.create(dict(config)), {"package": None})

    def stored(self, config_path: str) -> bool:
        """Whether `store` added a config of this name."""
        return config_path in self._results and self.file_of(config_path) is None

    def stored_file(self, config_path: str) -> ConfigFile:
        """What `store` added."""
        return ConfigFile((), self._contents[config_path])

    def load_config(self, config_path: str) -> ConfigResult:
        """A config of these folders, with its defaults list as a key."""
        if config_path not in self._results:
            self._results[config_path] = self._load(config_path)
        result = self._results[config_path]
        return replace(result, config=copy.deepcopy(result.config))  # Hydra changes what it loads

    def files(self, defaults: Sequence[ResultDefault]) -> list[ConfigFile]:
        """The files of a defaults list that are not Hydra's own, in its order."""
        found = []
        for default in defaults:
            if default.config_path in self._contents and not default.config_path.startswith("hydra/"):
                content = self._contents[default.config_path]
                own = {key: entry for key, entry in content.value.items() if key != "defaults"}
                package = tuple(default.package.split(".")) if default.package else ()
                found.append(ConfigFile(package, Entry(own, content.source)))
        return found

    def source_of(self, config_path: str, key: str = "") -> str:
        """A config's file, with the line of a dotted key or of what that key ends in."""
        if config_path not in self._contents:
            return config_path
        content = self._contents[config_path]
        wanted = tuple(key.split("."))
        sources = [entry.source for inner, entry in content.walk() if inner == wanted[-len(inner) :]]
        return sources[-1] if key and sources else content.source

    def drop_default(self, config_path: str, key: str) -> str | None:
        """Leave an entry out of a config's defaults list; its file and line, or None where there is no such entry."""
        if config_path not in self._contents:
            return None
        config = self._results[config_path].config
        left = [DefaultsEntry.of(item) for item in OmegaConf.to_container(config, resolve=False).get("defaults", [])]
        wrong = [each for each in left if f"/{key}".endswith(f"/{each.key.split()[-1].lstrip('/')}")]
        if not wrong:
            return None
        config["defaults"] = [each.item() for each in left if each not in wrong]
        entries = self._contents[config_path].value["defaults"].value
        return next(entry.source for entry in entries if DefaultsEntry.of(entry.plain()) == wrong[0])

    def drop(self, config_path: str, *, hydra_only: bool) -> bool:
        """Leave a config's content out, or its `hydra` section; False where there was none."""
        config = self._results[config_path].config if config_path in self._results else {}
        keys = [key for key in config if key == "hydra" or not hydra_only]
        for key in keys:
            config.pop(key)
        self.whole = self.whole and hydra_only
        return bool(keys)

    def _all_sources(self) -> Iterable[ConfigSource]:
        return self.sources or (CheckedSource("main", self.uri),)

    def _names(self, group: str, kind: ObjectType) -> list[str]:
        sources = (source for source in self._all_sources() if not group or source.is_group(group))
        return sorted({name for source in sources for name in source.list(group, kind)})

    def _load(self, config_path: str) -> ConfigResult:
        path = self.file_of(config_path)
        assert path is not None
        result = ConfigResult("main", str(path.parent), OmegaConf.create({}), {"package": None})
        try:
            text = path.read_text(encoding="utf-8")
            config = OmegaConf.load(StringIO(text))
            content = with_lines(path, text, OmegaConf.to_container(config, resolve=False))
            if not isinstance(content.value, dict):
                raise ValueError("a config holds keys and values")
            entries = content.value.get("defaults", Entry([], ""))
            if not isinstance(entries.value, list):
                raise ValueError("defaults must be a list")
            defaults = [(DefaultsEntry.of(entry.plain()), entry.source) for entry in entries.value]
            result.config = config
            result.header = CheckedSource.header_of(text)
            self._contents[config_path] = content
        except Exception as error:  # whatever a broken file provokes, it is the file that is wrong
            where, wrong = what_is_broken(path, error)
            self.problems.append(Problem(where, "", wrong))
            self.whole = False
            return replace(result, config=OmegaConf.create({}))
        if defaults:
            right = (self._right_default(config_path, each, source) for each, source in defaults)
            result.config["defaults"] = [each.item() for each in right if each is not None]
        return result

    def _right_default(self, config_path: str, default: DefaultsEntry, source: str) -> DefaultsEntry | None:
        """An entry of a defaults list; one that names nothing as what it probably means, or None where that is unclear."""
        if "optional" in default.keywords or (default.names_config and default.name == "_self_"):
            return default
        wrong = self._wrong_default(config_path, default)
        if wrong is None:
            return default
        self.problems.append(Problem(source, "defaults", wrong))
        group = default.name.lstrip("/")
        options = [] if default.names_config else self.options(group)
        meant = nearest(default.value, options) if isinstance(default.value, str) else []
        if meant:
            return replace(default, name=f"/{group}", value=meant[0])
        if options:
            self.unsure.add(place_of(default.package, group))
        self.whole = self.whole and "override" in default.keywords
        return None

    def _wrong_default(self, config_path: str, default: DefaultsEntry) -> ConfigError | None:
        """What is wrong with an entry of a defaults list, or None where it is right."""
        above = config_path.split("/")[:-1]
        # An option's name may hold slashes, so that its group is any of the folders above it.
        parents = [f"{'/'.join(above[:count])}/" for count in range(len(above), 0, -1)] or [""]
        name = default.name
        full = [name[1:]] if name.startswith("/") else [parent + name for parent in parents]
        if default.names_config:
            if "${" in name or any(self.config_exists(path) for path in full):
                return None
            group, _, option = full[0].rpartition("/")
            return ConfigError(
                f"no config {full[0]}{choices(option, self.options(group))}", code="unknown-config", found=full[0]
            )
        groups = [group for group in full if self.group_exists(group)]
        if not groups:
            hint = f"; did you mean /{name}?" if not name.startswith("/") and self.group_exists(name) else None
            return self.no_such_group(full[0], hint)
        for option in [default.value] if isinstance(default.value, str) else default.value or []:
            exists = any(self.config_exists(f"{group}/{option}") for group in groups)
            if not exists and option != "???" and "${" not in str(option):
                return self.no_such_option(groups[0], option)
        return None


class CheckedSource(ConfigSource):
    """A source of configs for Hydra that reads them from a `Repository`; its path is that of the repository's `uri`."""

    @property
    def repository(self) -> Repository:
        return _REPOSITORIES[f"{self.scheme()}://{self.path}"]

    @staticmethod
    def scheme() -> str:
        return "checked"

    @staticmethod
    def header_of(text: str) -> dict[str, str | None]:
        """The header of a config's text, `# @package _global_`."""
        return ConfigSource._get_header_dict(text)

    def load_config(self, config_path: str) -> ConfigResult:
        return self.repository.load_config(config_path.removesuffix(".yaml"))

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return any((folder / config_path).is_dir() for folder in self.repository.folders)

    def is_config(self, config_path: str) -> bool:
        return self.repository.file_of(config_path) is not None or self.repository.stored(config_path)

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        found: list[str] = []
        for folder in self.repository.folders:
            for file in (folder / config_path).iterdir() if (folder / config_path).is_dir() else ():
                self._list_add_result(found, f"{config_path}/{file.name}".lstrip("/"), file.name, results_filter)
        return sorted(set(found))


def place_of(package: str | None, group: str) -> tuple[str, ...]:
    """The place in the config that a group's content goes to."""
    return tuple((package or group).replace("/", ".").split("."))


def _path_of(uri: str) -> Path | None:
    """The folder of a search path's entry; None for one that is no folder or package."""
    scheme, separator, rest = uri.rpartition("://")
    if not separator or scheme == "file":
        return Path(rest)
    if scheme != "pkg":
        return None
    try:
        return Path(str(resources.files(rest.replace("/", "."))))
    except (ImportError, ValueError, TypeError):
        return None


_REPOSITORIES: WeakValueDictionary[str, Repository] = WeakValueDictionary()
_NUMBERS = count()

"""A fault-tolerant reader of config files: a file that cannot be loaded or found becomes a problem."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from io import StringIO
from itertools import count
from pathlib import Path
from typing import Any, cast
from weakref import WeakValueDictionary

from hydra.core.default_element import ResultDefault
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import DictConfig, OmegaConf

from ret_lightning.config.checker.yaml_files import Entry, describe_load_error, parse_entries, to_entry
from ret_lightning.config.config_errors import Problem, choices, nearest
from ret_lightning.config.nodes import to_plain
from ret_lightning.errors import ConfigError


@dataclass(frozen=True)
class ConfigFile:
    """The content of a config file and its package, the path in the config where it is merged (`("model", "gate")`)."""

    package: tuple[str, ...]
    content: Entry


@dataclass(frozen=True)
class DefaultsEntry:
    """An entry of a defaults list, `override /gate@model.gate: lstm`.

    Attributes:
        keywords: keywords before the name, such as `override`.
        name: name of the group or config.
        package: package after the `@`; None if there is none.
        value: chosen option; None for an entry that names a config.
        names_config: whether the entry names a config instead of an option of a group.
    """

    keywords: tuple[str, ...]
    name: str
    package: str | None
    value: Any
    names_config: bool

    @classmethod
    def of(cls, item: Any) -> DefaultsEntry:
        """Parse an item of a defaults list.

        Raises:
            ValueError: if the item is neither a name nor a single pair of a group and its option.
        """
        key, value = next(iter(item.items())) if isinstance(item, dict) and len(item) == 1 else (item, None)
        if not isinstance(key, str) or not key.split():
            raise ValueError(
                f"invalid entry of the defaults list: expected a name or one pair group: option, got {item}"
            )
        *keywords, full = key.split() if isinstance(item, dict) else [key]
        name, at, package = full.partition("@")
        return cls(tuple(keywords), name, package if at else None, value, not isinstance(item, dict))

    @property
    def key(self) -> str:
        """The key as written in a defaults list."""
        return " ".join([*self.keywords, self.name + ("" if self.package is None else f"@{self.package}")])

    def item(self) -> Any:
        """Return the entry as an item of a defaults list."""
        return self.key if self.names_config else {self.key: self.value}


class Repository:
    """The configs in a list of folders, each loaded once. Hydra reads them through a `CheckedSource`.

    A file that cannot be loaded is treated as empty, and a misspelt entry of a defaults list as the nearest name.

    Args:
        folders: folders or packages as Hydra URIs; the first folder with a config takes precedence.

    Attributes:
        problems: problems found so far.
        is_complete: False if content is missing because of a problem.
        unknown_paths: config paths whose content is missing, as far as they are known.
        sources: all config sources of Hydra, set after Hydra is initialized with this repository.
    """

    def __init__(self, folders: Sequence[str]) -> None:
        self.folders: list[Path] = []
        self.add_folders(folders)
        self.problems: list[Problem] = []
        self.unknown_paths: set[tuple[str, ...]] = set()
        self.is_complete = True
        self.sources: Sequence[ConfigSource] = ()
        self._contents: dict[str, Entry] = {}
        self._results: dict[str, ConfigResult] = {}
        self.uri = f"{CheckedSource.scheme()}://{next(_NUMBERS)}"
        _REPOSITORIES[self.uri] = self

    def add_folders(self, folders: Sequence[str]) -> None:
        """Append folders to the search path."""
        self.folders += [path for folder in folders if (path := _path_of(folder)) is not None]

    def file_of(self, config_path: str) -> Path | None:
        """Return the file of a config (`gate/lstm`) in the first folder that contains it; None if there is none."""
        files = (folder / f"{config_path.removesuffix('.yaml')}.yaml" for folder in self.folders)
        return next((file for file in files if file.is_file()), None)

    def config_exists(self, config_path: str) -> bool:
        """Return whether a config of this name exists, in these folders or among Hydra's own configs."""
        return any(source.is_config(config_path) for source in self._all_sources())

    def group_exists(self, group: str) -> bool:
        """Return whether a group of this name exists."""
        return any(source.is_group(group) for source in self._all_sources())

    def options(self, group: str) -> list[str]:
        """Return the options of a group; for an empty name, the configs of the top level."""
        return [name for name in self._names(group, ObjectType.CONFIG) if not name.startswith("_")]

    def groups(self, parent: str = "") -> list[str]:
        """Return all groups that have options, except Hydra's own."""
        found: list[str] = []
        for name in self._names(parent, ObjectType.GROUP):
            group = f"{parent}/{name}" if parent else name
            if group != "hydra":
                found += ([group] if self.options(group) else []) + self.groups(group)
        return found

    def no_such_group(self, group: str, hint: str | None = None) -> ConfigError:
        """Return the error of a group that does not exist; without a hint it lists the existing groups."""
        text = f"unknown group {group}{hint or choices(group, self.groups())}"
        return ConfigError(text, code="unknown-group", found=group)

    def no_such_option(self, group: str, option: object, hint: str = "") -> ConfigError:
        """Return the error of an option that a group does not have."""
        options = self.options(group)
        text = f"{group} has no option {'null' if option is None else option}{choices(option, options)}{hint}"
        return ConfigError(text, code="unknown-option", group=group, found=option, allowed=tuple(options))

    def store(self, config_path: str, config: Mapping[str, Any]) -> None:
        """Add a config that is not stored in a file."""
        self._contents[config_path] = to_entry(dict(config), config_path)
        self._results[config_path] = ConfigResult("main", self.uri, OmegaConf.create(dict(config)), {"package": None})

    def stored(self, config_path: str) -> bool:
        """Return whether `store` added a config of this name."""
        return config_path in self._results and self.file_of(config_path) is None

    def stored_file(self, config_path: str) -> ConfigFile:
        """Return the config that `store` added under this name."""
        return ConfigFile((), self._contents[config_path])

    def load_config(self, config_path: str) -> ConfigResult:
        """Return a config of these folders, with its defaults list under the key `defaults`."""
        if config_path not in self._results:
            self._results[config_path] = self._load(config_path)
        result = self._results[config_path]
        return replace(result, config=copy.deepcopy(result.config))  # Hydra modifies loaded configs

    def files(self, defaults: Sequence[ResultDefault]) -> list[ConfigFile]:
        """Return the files of a defaults list in its order, except Hydra's own."""
        found = []
        for default in defaults:
            if default.config_path in self._contents and not default.config_path.startswith("hydra/"):
                content = self._contents[default.config_path]
                own = {key: entry for key, entry in content.value.items() if key != "defaults"}
                package = tuple(default.package.split(".")) if default.package else ()
                found.append(ConfigFile(package, Entry(own, content.source)))
        return found

    def source_of(self, config_path: str, key: str = "") -> str:
        """Return the file of a config, with the line of a dotted key or of the longest suffix of it that the file contains."""
        if config_path not in self._contents:
            return config_path
        content = self._contents[config_path]
        wanted = tuple(key.split("."))
        sources = [entry.source for inner, entry in content.walk() if inner == wanted[-len(inner) :]]
        return sources[-1] if key and sources else content.source

    def drop_default(self, config_path: str, key: str) -> str | None:
        """Remove an entry from a config's defaults list.

        Returns:
            The file and line of the entry; None if there is no such entry.
        """
        if config_path not in self._contents:
            return None
        config = self._results[config_path].config
        entries = [DefaultsEntry.of(item) for item in to_plain(cast(DictConfig, config)).get("defaults", [])]
        removed = [each for each in entries if f"/{key}".endswith(f"/{each.key.split()[-1].lstrip('/')}")]
        if not removed:
            return None
        config["defaults"] = [each.item() for each in entries if each not in removed]
        written = self._contents[config_path].value["defaults"].value
        return next(entry.source for entry in written if DefaultsEntry.of(entry.plain()) == removed[0])

    def drop(self, config_path: str, *, hydra_only: bool) -> bool:
        """Remove the content of a config, or only its `hydra` node; return whether there was any."""
        config: Any = self._results[config_path].config if config_path in self._results else {}
        keys = [key for key in config if key == "hydra" or not hydra_only]
        for key in keys:
            config.pop(key)
        self.is_complete = self.is_complete and hydra_only
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
            config: Any = OmegaConf.load(StringIO(text))
            content = parse_entries(path, text, OmegaConf.to_container(config, resolve=False))
            if not isinstance(content.value, dict):
                raise ValueError("expected a mapping of keys to values")
            entries = content.value.get("defaults", Entry([], ""))
            if not isinstance(entries.value, list):
                raise ValueError("expected a list in defaults")
            defaults = [(DefaultsEntry.of(entry.plain()), entry.source) for entry in entries.value]
            result.config = config
            result.header = CheckedSource.header_of(text)
            self._contents[config_path] = content
        except Exception as error:  # an invalid file can raise any exception in the parsers
            location, invalid = describe_load_error(path, error)
            self.problems.append(Problem(location, "", invalid))
            self.is_complete = False
            return replace(result, config=OmegaConf.create({}))
        if defaults:
            valid = (self._repair_default(config_path, each, source) for each, source in defaults)
            config["defaults"] = [each.item() for each in valid if each is not None]
        return result

    def _repair_default(self, config_path: str, default: DefaultsEntry, source: str) -> DefaultsEntry | None:
        """Return an entry of a defaults list, with a misspelt option replaced by the nearest; None if there is none near."""
        if "optional" in default.keywords or (default.names_config and default.name == "_self_"):
            return default
        error = self._check_default(config_path, default)
        if error is None:
            return default
        self.problems.append(Problem(source, "defaults", error))
        group = default.name.lstrip("/")
        options = [] if default.names_config else self.options(group)
        meant = nearest(default.value, options) if isinstance(default.value, str) else []
        if meant:
            return replace(default, name=f"/{group}", value=meant[0])
        if options:
            self.unknown_paths.add(package_path(default.package, group))
        self.is_complete = self.is_complete and "override" in default.keywords
        return None

    def _check_default(self, config_path: str, default: DefaultsEntry) -> ConfigError | None:
        """Return the error of an entry of a defaults list; None if it is valid."""
        above = config_path.split("/")[:-1]
        # An option name may contain slashes, so any parent folder can be its group.
        parents = [f"{'/'.join(above[:count])}/" for count in range(len(above), 0, -1)] or [""]
        name = default.name
        full = [name[1:]] if name.startswith("/") else [parent + name for parent in parents]
        if default.names_config:
            if "${" in name or any(self.config_exists(path) for path in full):
                return None
            group, _, option = full[0].rpartition("/")
            return ConfigError(
                f"unknown config {full[0]}{choices(option, self.options(group))}", code="unknown-config", found=full[0]
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
    """A config source for Hydra that reads from a `Repository`, addressed by the repository's `uri`."""

    @property
    def repository(self) -> Repository:
        return _REPOSITORIES[f"{self.scheme()}://{self.path}"]

    @staticmethod
    def scheme() -> str:
        return "checked"

    @staticmethod
    def header_of(text: str) -> dict[str, str | None]:
        """Return the header of a config, such as `# @package _global_`."""
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


def package_path(package: str | None, group: str) -> tuple[str, ...]:
    """Return the path in the config where the content of a group is merged."""
    return tuple((package or group).replace("/", ".").split("."))


def _path_of(uri: str) -> Path | None:
    """Return the folder of an entry of the search path; None if it is neither a folder nor a package."""
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

"""Hydra's reader of config files, which never fails: what it cannot load or find becomes a mistake."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository
from hydra.core.default_element import GroupDefault, InputDefault, ResultDefault
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult
from omegaconf import OmegaConf

from ret_lightning.config.checker.yaml_files import Entry, path_in, read_yaml, what_is_broken
from ret_lightning.config.config_errors import Mistake, choices, nearest
from ret_lightning.errors import ConfigError


@dataclass(frozen=True)
class ConfigFile:
    """A file that takes part: its content, and the place in the config (`("model", "gate")`) that it goes to."""

    package: tuple[str, ...]
    content: Entry


class Repository(CachingConfigRepository):
    """Loads each config once. A broken file counts as empty; a misspelt entry of a defaults list as the nearest name.

    `mistakes` are those met so far. `whole` is False once any content is missing because of them, and `unsure` are the
    places where it is missing, as far as that is known.
    """

    def __init__(self, delegate: ConfigRepository) -> None:
        super().__init__(delegate)
        self.mistakes: list[Mistake] = []
        self.unsure: set[tuple[str, ...]] = set()
        self.whole = True
        self._contents: dict[str, Entry] = {}

    def load_config(self, config_path: str) -> ConfigResult | None:
        if config_path not in self.cache:
            self.cache[config_path] = self._load(config_path)
        return self.cache[config_path]

    def options(self, group: str) -> list[str]:
        """The options of a group, or the configs that stand at the top where the group is empty."""
        if group and not self.group_exists(group):
            return []
        return [name for name in self.get_group_options(group, ObjectType.CONFIG) if not name.startswith("_")]

    def groups(self, parent: str = "") -> list[str]:
        """All groups that have options, Hydra's own left out."""
        found: list[str] = []
        for name in self.get_group_options(parent, ObjectType.GROUP):
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

    def source_of_default(self, config_path: str, group: str) -> str:
        """The file, with its line, of a group's entry in a defaults list."""
        content = self._contents[config_path]
        named = [entry for entry in content.value["defaults"].value if isinstance(entry.value, dict)]
        sources = [entry.source for entry in named if str(next(iter(entry.value))).split()[-1] == group]
        return sources[0] if sources else content.source

    def drop(self, config_path: str, *, hydra_only: bool) -> bool:
        """Go on without a config's content, or without its `hydra` section; False where there was none."""
        config = self.load_config(config_path).config
        keys = [key for key in config if key == "hydra" or not hydra_only]
        for key in keys:
            config.pop(key)
        self.whole = self.whole and hydra_only
        return bool(keys)

    def _load(self, config_path: str) -> ConfigResult | None:
        source = next((source for source in self.get_sources() if source.is_config(config_path)), None)
        if source is None:
            return None
        path = path_in(source, config_path)
        if path is None:
            return self.delegate.load_config(config_path)
        try:
            result = self.delegate.load_config(config_path)
            content = read_yaml(path)
            if not isinstance(content.value, dict):
                raise ValueError("a config holds keys and values")
            self._contents[config_path] = content
        except Exception as error:  # whatever a broken file provokes, it is the file that is wrong
            where, wrong = what_is_broken(path, error)
            self.mistakes.append(Mistake(where, "", wrong))
            self.whole = False
            return ConfigResult(source.provider, source.path, OmegaConf.create({}), {"package": None}, [])
        result.defaults_list = self._right_defaults(config_path, result.defaults_list)
        return result

    def _right_defaults(self, config_path: str, defaults: Sequence[InputDefault]) -> list[InputDefault]:
        """A file's defaults list without the entries that name nothing, or with what they probably mean."""
        content = self._contents[config_path].value
        entries = content["defaults"].value if "defaults" in content else []
        right: list[InputDefault] = []
        for default, entry in zip(defaults, entries, strict=True):
            optional = default.is_self() or getattr(default, "optional", False)
            wrong = None if optional else self._wrong(config_path, default)
            if wrong is not None:
                self.mistakes.append(Mistake(entry.source, "defaults", wrong))
            if wrong is None or self._mend(default):
                right.append(default)
        return right

    def _mend(self, default: InputDefault) -> bool:
        """Turn an entry that names nothing into what it probably means; False where that cannot be told."""
        if isinstance(default, GroupDefault):
            group = default.group.lstrip("/")
            options = self.options(group)
            meant = nearest(default.value, options) if isinstance(default.value, str) else []
            if meant:
                default.group, default.value = f"/{group}", meant[0]
                return True
            if options:
                self.unsure.add(place_of(default.package, group))
        self.whole = self.whole and default.is_override()
        return False

    def _wrong(self, config_path: str, default: InputDefault) -> ConfigError | None:
        """What is wrong with an entry of a defaults list, or None where it is right."""
        above = config_path.split("/")[:-1]
        # An option's name may hold slashes, so that its group is any of the folders above it.
        parents = [f"{'/'.join(above[:count])}/" for count in range(len(above), 0, -1)] or [""]
        name = default.group if isinstance(default, GroupDefault) else default.path
        full = [name[1:]] if name.startswith("/") else [parent + name for parent in parents]
        if not isinstance(default, GroupDefault):
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
            if not exists and option != "???" and "${" not in option:
                return self.no_such_option(groups[0], option)
        return None


def place_of(package: str | None, group: str) -> tuple[str, ...]:
    """The place in the config that a group's content goes to."""
    return tuple((package or group).replace("/", ".").split("."))

"""Config files as their authors see them: every key with its line, and what is broken in one line."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import GrammarParseError

from ret_lightning.errors import ConfigError


@dataclass(frozen=True)
class Entry:
    """A value in a config, and where it was set (`conf/gate/lstm.yaml:4`); mappings and lists hold entries again."""

    value: Any
    source: str

    def plain(self) -> Any:
        """The value in plain containers."""
        if isinstance(self.value, dict):
            return {key: entry.plain() for key, entry in self.value.items()}
        return [entry.plain() for entry in self.value] if isinstance(self.value, list) else self.value

    def walk(self, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Entry]]:
        """Every entry below this one, with its path."""
        items = enumerate(self.value) if isinstance(self.value, list) else ()
        for key, entry in self.value.items() if isinstance(self.value, dict) else items:
            inner = (*path, str(key))
            yield inner, entry
            yield from entry.walk(inner)


def entry_of(value: Any, source: str) -> Entry:
    """Plain containers as entries that were all set in one place."""
    if isinstance(value, dict):
        return Entry({key: entry_of(inner, source) for key, inner in value.items()}, source)
    return Entry([entry_of(inner, source) for inner in value] if isinstance(value, list) else value, source)


def relative_path(path: Path) -> str:
    """A path as its user would open it: relative where it lies below the working directory."""
    path = Path(os.path.abspath(path))
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def read_yaml(path: Path, text: str | None = None) -> Entry:
    """A YAML file's entries, its scalars read as Hydra reads them; `text` is its content where that is read already."""
    loader = get_yaml_loader()(path.read_text(encoding="utf-8") if text is None else text)
    try:
        node = loader.get_single_node()
        return Entry({}, relative_path(path)) if node is None else _entry(loader, node, relative_path(path), 0)
    finally:
        loader.dispose()


def what_is_broken(path: Path, error: Exception) -> tuple[str, ConfigError]:
    """The place in a file, and the reason, for which it could not be loaded."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        reason = error.problem or error.context or "cannot be read"
        if reason.startswith("found duplicate key"):
            reason = f"{reason.removeprefix('found ')}, which the same mapping has above"
        place = relative_path(path) if mark is None else f"{relative_path(path)}:{_line(mark)}"
        return place, ConfigError(f"broken YAML: {reason}", code="broken-yaml", path=path, reason=reason)
    if isinstance(error, UnicodeDecodeError):
        return relative_path(path), ConfigError("not a text file in UTF-8", code="config-not-utf8", path=path)
    if isinstance(error, GrammarParseError):
        for keys, entry in read_yaml(path).walk():
            if isinstance(entry.value, str) and not _parses(entry.value):
                key = ".".join(keys)
                text = f"{key}: cannot be read as an interpolation: {entry.value}"
                wrong = ConfigError(text, code="interpolation-unreadable", path=path, key=key, found=entry.value)
                return entry.source, wrong
    return relative_path(path), ConfigError(first_line(error), code="config-unreadable", path=path)


def first_line(error: BaseException) -> str:
    """The first line of an exception's message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _entry(loader: Any, node: yaml.Node, file: str, line: int) -> Entry:
    source = f"{file}:{line}" if line else file
    if isinstance(node, yaml.MappingNode):
        own = sum(key.tag != "tag:yaml.org,2002:merge" for key, _ in node.value)
        loader.flatten_mapping(node)  # puts the keys of `<<` first, which the mapping's own may repeat
        items = [(loader.construct_object(key, deep=True), key.start_mark, value) for key, value in node.value]
        _refuse_duplicates(items[len(items) - own :], node)
        return Entry({key: _entry(loader, value, file, _line(mark)) for key, mark, value in items}, source)
    if isinstance(node, yaml.SequenceNode):
        return Entry([_entry(loader, item, file, _line(item.start_mark)) for item in node.value], source)
    return Entry(loader.construct_object(node), source)


def _refuse_duplicates(items: Sequence[tuple[Any, yaml.Mark, yaml.Node]], node: yaml.Node) -> None:
    seen: set[Any] = set()
    for key, mark, _ in items:
        if key in seen:
            raise yaml.constructor.ConstructorError("in a mapping", node.start_mark, f"found duplicate key {key}", mark)
        seen.add(key)


def _parses(text: str) -> bool:
    try:
        OmegaConf.create([text])
    except GrammarParseError:
        return False
    return True


def _line(mark: yaml.Mark) -> int:
    return mark.line + 1

"""YAML files with the line of every key, and one-line errors for files that cannot be loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import GrammarParseError

from ret_lightning.errors import ConfigError

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # used for line numbers; the C loader is faster


@dataclass(frozen=True)
class Entry:
    """A config value with the location where it was set (`conf/gate/lstm.yaml:4`). Mappings and lists contain entries."""

    value: Any
    source: str

    def plain(self) -> Any:
        """Return the value in plain containers."""
        if isinstance(self.value, dict):
            return {key: entry.plain() for key, entry in self.value.items()}
        return [entry.plain() for entry in self.value] if isinstance(self.value, list) else self.value

    def walk(self, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Entry]]:
        """Yield every nested entry with its path."""
        items = enumerate(self.value) if isinstance(self.value, list) else ()
        for key, entry in self.value.items() if isinstance(self.value, dict) else items:
            inner = (*path, str(key))
            yield inner, entry
            yield from entry.walk(inner)


def to_entry(value: Any, source: str) -> Entry:
    """Convert plain containers to entries that share one location."""
    if isinstance(value, dict):
        return Entry({key: to_entry(inner, source) for key, inner in value.items()}, source)
    return Entry([to_entry(inner, source) for inner in value] if isinstance(value, list) else value, source)


def relative_path(path: Path) -> str:
    """Return a path relative to the working folder if it is inside it, else an absolute path."""
    path = Path(os.path.abspath(path))
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def read_yaml(path: Path) -> Entry:
    """Read a YAML file as entries, with scalars parsed as by Hydra."""
    text = path.read_text(encoding="utf-8")
    return parse_entries(path, text, OmegaConf.to_container(OmegaConf.load(StringIO(text)), resolve=False))


def parse_entries(path: Path, text: str, plain: Any) -> Entry:
    """Convert the content of a YAML file to entries with line numbers.

    Args:
        path: the file, for messages.
        text: the text of the file.
        plain: the plain containers loaded from the text.
    """
    node = yaml.compose(text, Loader=_LOADER)
    return _entry(plain, node, relative_path(path), 0) if node is not None else Entry({}, relative_path(path))


def describe_load_error(path: Path, error: Exception) -> tuple[str, ConfigError]:
    """Return the location and the error of a file that could not be loaded."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        reason = error.problem or error.context or "cannot be parsed"
        if reason.startswith("found duplicate key"):
            reason = f"{reason.removeprefix('found ')}: the mapping already contains it"
        location = relative_path(path) if mark is None else f"{relative_path(path)}:{_line(mark)}"
        return location, ConfigError(f"invalid YAML: {reason}", code="broken-yaml", path=path, reason=reason)
    if isinstance(error, UnicodeDecodeError):
        return relative_path(path), ConfigError("expected UTF-8 text", code="config-not-utf8", path=path)
    if isinstance(error, GrammarParseError):
        text = path.read_text(encoding="utf-8")
        for keys, entry in parse_entries(path, text, yaml.safe_load(text)).walk():
            if isinstance(entry.value, str) and not _parses(entry.value):
                key = ".".join(keys)
                text = f"{key}: invalid interpolation: {entry.value}"
                invalid = ConfigError(text, code="interpolation-unreadable", path=path, key=key, found=entry.value)
                return entry.source, invalid
    return relative_path(path), ConfigError(first_line(error), code="config-unreadable", path=path)


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or its class name if the message is empty."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _entry(value: Any, node: yaml.Node, file: str, line: int) -> Entry:
    source = f"{file}:{line}" if line else file
    if isinstance(node, yaml.ScalarNode):
        return Entry(node.value if line == 0 else value, source)
    if isinstance(node, yaml.SequenceNode):
        pairs = zip(value, node.value, strict=True)
        return Entry([_entry(item, inner, file, _line(inner.start_mark)) for item, inner in pairs], source)
    nodes = _key_nodes(node)
    entries = {}
    for key, item in value.items():
        mark, inner = nodes.get(str(key).lower(), (node.start_mark, None))
        entries[key] = (
            to_entry(item, f"{file}:{_line(mark)}") if inner is None else _entry(item, inner, file, _line(mark))
        )
    return Entry(entries, source)


def _key_nodes(node: yaml.MappingNode) -> dict[str, tuple[yaml.Mark, yaml.Node]]:
    """Return the position and the value node of each key, including keys merged by `<<`."""
    found: dict[str, tuple[yaml.Mark, yaml.Node]] = {}
    for key, value in node.value:
        if key.tag == "tag:yaml.org,2002:merge":
            for other in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                found = _key_nodes(other) | found
    return found | {key.value.lower(): (key.start_mark, value) for key, value in node.value}


def _parses(text: str) -> bool:
    try:
        OmegaConf.create([text])
    except GrammarParseError:
        return False
    return True


def _line(mark: yaml.Mark) -> int:
    return mark.line + 1

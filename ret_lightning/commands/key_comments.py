"""Comments of the keys in config files, the source of the help pages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml


@dataclass(frozen=True)
class KeyComment:
    """A key of a config file with its comment.

    Attributes:
        path: parts of the key.
        value: the value as written, on one line; empty for a mapping.
        comment: the comments above the key and after its value.
    """

    path: tuple[str, ...]
    value: str
    comment: str

    @property
    def summary(self) -> str:
        """First sentence of the comment."""
        return first_sentence(self.comment)


def key_comments(file: Path) -> list[KeyComment]:
    """Return all keys of a config file in order. Entries of the defaults list are named by their group or config."""
    text = file.read_text(encoding="utf-8")
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    return list(_walk_keys(root, (), text.splitlines())) if isinstance(root, yaml.MappingNode) else []


def head_comment(file: Path) -> str:
    """Return the comment at the start of a file, up to the first empty line."""
    words = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("# @"):
            continue
        if not line.startswith("# "):
            break
        words.append(line.removeprefix("# "))
    return " ".join(words)


def first_sentence(comment: str) -> str:
    """Return the text up to its first full stop."""
    return re.split(r"(?<=\w\w\.|.[)`]\.)\s", comment, maxsplit=1)[0].removesuffix(".")


def _walk_keys(node: yaml.MappingNode, above: tuple[str, ...], lines: list[str]) -> Iterator[KeyComment]:
    for key, value in node.value:
        path = (*above, str(key.value))
        nested = isinstance(value, yaml.MappingNode) and not value.flow_style and value.value
        yield KeyComment(path, "" if nested else _value_text(value, lines), _read_comment(key, value, lines))
        if nested:
            yield from _walk_keys(value, path, lines)
        elif path == ("defaults",) and isinstance(value, yaml.SequenceNode):
            for item in value.value:
                name, option = item.value[0] if isinstance(item, yaml.MappingNode) else (item, item)
                yield KeyComment((*path, name.value), _value_text(option, lines), _read_comment(name, option, lines))


def _value_text(value: yaml.Node, lines: list[str]) -> str:
    """Return the text of a value; for a value of several lines, the first line."""
    start, end = value.start_mark, value.end_mark
    line = lines[start.line] if start.line < len(lines) else ""
    return line[start.column : end.column] if start.line == end.line else f"{line[start.column :].strip()} ..."


def _read_comment(key: yaml.Node, value: yaml.Node, lines: list[str]) -> str:
    number, column = key.start_mark.line, key.start_mark.column
    above: list[str] = []
    while number - len(above) > 0 and re.match(rf" {{{column}}}# ?(.*)", lines[number - len(above) - 1]):
        above.append(lines[number - len(above) - 1])
    if len(above) == number:  # the header comment of the file
        above = []
    words = [line.strip().removeprefix("#").strip() for line in reversed(above)]
    end = value.end_mark.column if value.end_mark.line == number else key.end_mark.column + 1
    behind = re.match(r"\s+#\s*(.*)", lines[number][end:])
    return " ".join(filter(None, [*words, behind[1] if behind else ""]))

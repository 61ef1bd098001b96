"""What the comments of config files say of their keys."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml


@dataclass(frozen=True)
class KeyComment:
    """A key of a config file.

    Attributes:
        path: its parts.
        value: as the file has it, on one line; empty for a mapping.
        comment: the comment above the key and the one behind its value.
    """

    path: tuple[str, ...]
    value: str
    comment: str

    @property
    def summary(self) -> str:
        """The first sentence of the comment."""
        return first_sentence(self.comment)


def key_comments(file: Path) -> list[KeyComment]:
    """Every key of a file, in its order; entries of a list named by their group or config (`defaults.gate`)."""
    text = file.read_text(encoding="utf-8")
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    return list(_keys(root, (), text.splitlines())) if isinstance(root, yaml.MappingNode) else []


def head_comment(file: Path) -> str:
    """The comment at the beginning of a file, up to an empty line."""
    words = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("# @"):
            continue
        if not line.startswith("# "):
            break
        words.append(line.removeprefix("# "))
    return " ".join(words)


def first_sentence(comment: str) -> str:
    """The text up to its first full stop."""
    return re.split(r"(?<=\w\w\.|.[)`]\.)\s", comment, maxsplit=1)[0].removesuffix(".")


def _keys(node: yaml.MappingNode, above: tuple[str, ...], lines: list[str]) -> Iterator[KeyComment]:
    for key, value in node.value:
        path = (*above, str(key.value))
        nested = isinstance(value, yaml.MappingNode) and not value.flow_style and value.value
        yield KeyComment(path, "" if nested else _shown(value, lines), _comment(key, value, lines))
        if nested:
            yield from _keys(value, path, lines)
        elif path == ("defaults",) and isinstance(value, yaml.SequenceNode):
            for item in value.value:
                pair = item.value[0] if isinstance(item, yaml.MappingNode) else (item, item)
                yield KeyComment((*path, pair[0].value), _shown(pair[1], lines), _comment(*pair, lines))


def _shown(value: yaml.Node, lines: list[str]) -> str:
    """The text of a value; of one with several lines the first."""
    start, end = value.start_mark, value.end_mark
    line = lines[start.line] if start.line < len(lines) else ""
    return line[start.column : end.column] if start.line == end.line else f"{line[start.column :].strip()} ..."


def _comment(key: yaml.Node, value: yaml.Node, lines: list[str]) -> str:
    number, column = key.start_mark.line, key.start_mark.column
    above: list[str] = []
    while number - len(above) > 0 and re.match(rf" {{{column}}}# ?(.*)", lines[number - len(above) - 1]):
        above.append(lines[number - len(above) - 1])
    if len(above) == number:  # the comment of the file
        above = []
    words = [line.strip().removeprefix("#").strip() for line in reversed(above)]
    end = value.end_mark.column if value.end_mark.line == number else key.end_mark.column + 1
    behind = re.match(r"\s+#\s*(.*)", lines[number][end:])
    return " ".join(filter(None, [*words, behind[1] if behind else ""]))

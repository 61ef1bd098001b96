"""The help of a command, made of its config files and their comments; Hydra is not asked."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ret_lightning.config.checker.config_repository import DefaultsEntry, Repository
from ret_lightning.config.checker.yaml_files import read_yaml
from ret_lightning.config.key_comments import KeyComment, first_sentence, head_comment, key_comments

_WIDTH = 110
_POINTERS = (
    "`{prog} --help all{choice}` describes every key, `{prog} --cfg job` prints the config that a command line makes, and "
    "`{prog} --hydra-help` the flags of Hydra."
)


@dataclass(frozen=True)
class _Group:
    """A config group: its key in the defaults list, the option in use, and what its comment says."""

    key: str
    option: str | None
    comment: str

    @property
    def name(self) -> str:
        return self.key.partition("@")[0].lstrip("/")


def help_page(
    search_path: Sequence[str], config_name: str, prog: str, overrides: Sequence[str] = (), *, every_key: bool = False
) -> str:
    """The help of a command.

    Args:
        search_path: the folders of the configs, the main one first.
        config_name: the primary config.
        prog: the command's name.
        overrides: of the command line; `group=option` selects the option that is described.
        every_key: describe every key of the config, those of the options in use as well.
    """
    repository = Repository(search_path)
    names = list(_with_parents(repository, config_name))
    comments = _comments(repository, config_name)
    chosen = dict(override.partition("=")[::2] for override in overrides)
    groups = [group for group in map(_group, comments.values()) if group is not None]
    groups = [_Group(group.key, chosen.get(group.key, group.option), group.comment) for group in groups]
    keys = [each for each in comments.values() if each.path[0] not in ("defaults", "hydra")]
    title, examples = _texts(repository, names)
    if every_key:
        body = _every_key(repository, keys, groups)
    else:
        body = _groups(repository, groups) + _top_level(keys)
    choice = " group=option" if groups else ""
    parts = [
        title,
        *body,
        "",
        textwrap.fill(_POINTERS.format(prog=prog, choice=choice), _WIDTH),
        *_heading("Examples"),
        examples,
    ]
    return "\n".join(parts)


def _with_parents(repository: Repository, config_path: str) -> Iterator[str]:
    """A config and those of the same folder that it builds on."""
    file = repository.file_of(config_path)
    if file is None:
        return
    yield config_path
    folder = config_path.rpartition("/")[0]
    for entry in read_yaml(file).plain().get("defaults", []):
        default = DefaultsEntry.of(entry)
        if default.names_config and "/" not in default.name and default.name != "_self_":
            yield from _with_parents(repository, f"{folder}/{default.name}".lstrip("/"))


def _comments(repository: Repository, config_path: str) -> dict[tuple[str, ...], KeyComment]:
    """The keys of a config and of those that it builds on."""
    names = reversed(list(_with_parents(repository, config_path)))
    return {each.path: each for name in names for each in key_comments(repository.file_of(name))}


def _group(key: KeyComment) -> _Group | None:
    """The group that an entry of a defaults list chooses an option of; Hydra's own are left out."""
    name = key.path[1] if key.path[0] == "defaults" and len(key.path) == 2 else ""
    if not name or name == key.value or name.split()[-1].lstrip("/").startswith("hydra/"):
        return None
    return _Group(name.split()[-1], None if key.value == "null" else key.value, key.comment)


def _texts(repository: Repository, names: Sequence[str]) -> tuple[str, str]:
    """The title of the help and its examples, of the first config that has them."""
    for name in names:
        shown = read_yaml(repository.file_of(name)).plain().get("hydra", {}).get("help", {})
        if "header" in shown:
            return shown["header"].strip("\n"), str(shown.get("footer", "")).strip("\n")
    return "", ""


def _groups(repository: Repository, groups: Sequence[_Group]) -> list[str]:
    """Two lines for each group: what it is, and its options with the one in use first."""
    if not groups:
        return []
    width = max(len(group.key) for group in groups) + 4
    lines = _heading("Groups, group=option (the default is first)")
    for group in groups:
        lines.append(_cut(f"  {group.key.ljust(width - 2)}{_summary(repository, group)}"))
        options = repository.options(group.name)
        ordered = [group.option or "(no default)", *(option for option in options if option != group.option)]
        indent = " " * width
        lines += textwrap.wrap(", ".join(ordered), _WIDTH, initial_indent=indent, subsequent_indent=indent)
    return lines


def _summary(repository: Repository, group: _Group) -> str:
    """The comment of a group in the defaults list; else that of its option in use or first option."""
    if group.comment:
        return first_sentence(group.comment)
    option = group.option or next(iter(repository.options(group.name)), None)
    file = None if option is None else repository.file_of(f"{group.name}/{option}")
    return "" if file is None else first_sentence(head_comment(file))


def _top_level(keys: Sequence[KeyComment]) -> list[str]:
    shown = {each.path[0] + ("" if not each.value else f"={each.value}"): each for each in keys if len(each.path) == 1}
    shown = {name.replace("=???", "=..."): each for name, each in shown.items()}
    if not shown:
        return []
    width = min(max(map(len, shown)), 36) + 4
    lines = _heading("Options, key=value (with the default; ... must be given)")
    for name, each in shown.items():
        if len(name) > width - 4:
            name = each.path[0]
        lines.append(_cut(f"  {name.ljust(width - 2)}{each.summary}"))
    return lines


def _every_key(repository: Repository, keys: Sequence[KeyComment], groups: Sequence[_Group]) -> list[str]:
    lines = _heading("Options, key: default")
    for each in keys:
        lines += _described(each, "")
    for group in groups:
        file = None if group.option is None else repository.file_of(f"{group.name}/{group.option}")
        lines += ["", f"{group.key}={group.option or 'null'} ({', '.join(repository.options(group.name))})"]
        if file is None:
            lines += textwrap.wrap(_summary(repository, group), _WIDTH, initial_indent="    ", subsequent_indent="    ")
            continue
        text = file.read_text(encoding="utf-8")
        package = "" if "@package _global_" in text.partition("\n")[0] else group.key.partition("@")[2] or group.name
        lines += textwrap.wrap(head_comment(file), _WIDTH, initial_indent="    ", subsequent_indent="    ")
        for each in _comments(repository, f"{group.name}/{group.option}").values():
            if each.path[0] not in ("defaults", "hydra"):
                lines += _described(each, f"{package.replace('/', '.')}." if package else "")
    return lines


def _heading(text: str) -> list[str]:
    return ["", text, "-" * len(text)]


def _cut(line: str) -> str:
    return line if len(line) <= _WIDTH else f"{line[: _WIDTH - 3].rstrip()}..."


def _described(key: KeyComment, prefix: str) -> list[str]:
    indent = " " * 6
    name = f"  {prefix}{'.'.join(key.path)}: {key.value}".rstrip()
    return [name, *textwrap.wrap(key.comment, _WIDTH, initial_indent=indent, subsequent_indent=indent)]

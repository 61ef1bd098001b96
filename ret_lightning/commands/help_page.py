"""The help page of a command, generated from its config files and their comments."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ret_lightning.commands.key_comments import KeyComment, first_sentence, head_comment, key_comments
from ret_lightning.config.checker.config_repository import DefaultsEntry, Repository
from ret_lightning.config.checker.yaml_files import read_yaml

_WIDTH = 110
_SEE_ALSO = (
    "`{prog} --help all{choice}` describes all keys, `{prog} --cfg job` prints the composed config, and `{prog} --hydra-help` "
    "lists the flags of Hydra."
)


@dataclass(frozen=True)
class _Group:
    """A config group.

    Attributes:
        key: key in the defaults list.
        option: chosen option; None if there is none.
        comment: comment of the entry in the defaults list.
    """

    key: str
    option: str | None
    comment: str

    @property
    def name(self) -> str:
        return self.key.partition("@")[0].lstrip("/")


def help_page(
    search_path: Sequence[str], config_name: str, prog: str, overrides: Sequence[str] = (), *, every_key: bool = False
) -> str:
    """Return the help page of a command.

    Args:
        search_path: folders of the configs as Hydra URIs, the main folder first.
        config_name: name of the primary config.
        prog: name of the command.
        overrides: overrides of the command line; `group=option` selects the option to describe.
        every_key: whether to describe all keys, including those of the chosen options.
    """
    repository = Repository(search_path)
    names = list(_with_parents(repository, config_name))
    comments = _comments_by_path(repository, config_name)
    chosen = dict(override.partition("=")[::2] for override in overrides)
    groups = [group for group in map(_to_group, comments.values()) if group is not None]
    groups = [_Group(group.key, chosen.get(group.key, group.option), group.comment) for group in groups]
    keys = [each for each in comments.values() if each.path[0] not in ("defaults", "hydra")]
    title, examples = _header_and_examples(repository, names)
    if every_key:
        body = _format_every_key(repository, keys, groups)
    else:
        body = _format_groups(repository, groups) + _format_top_level(keys)
    choice = " group=option" if groups else ""
    parts = [
        title,
        *body,
        "",
        textwrap.fill(_SEE_ALSO.format(prog=prog, choice=choice), _WIDTH),
        *_format_heading("Examples"),
        examples,
    ]
    return "\n".join(parts)


def _with_parents(repository: Repository, config_path: str) -> Iterator[str]:
    """Yield a config and the configs of the same folder in its defaults list, recursively."""
    file = repository.file_of(config_path)
    if file is None:
        return
    yield config_path
    folder = config_path.rpartition("/")[0]
    for entry in read_yaml(file).plain().get("defaults", []):
        default = DefaultsEntry.of(entry)
        if default.names_config and "/" not in default.name and default.name != "_self_":
            yield from _with_parents(repository, f"{folder}/{default.name}".lstrip("/"))


def _comments_by_path(repository: Repository, config_path: str) -> dict[tuple[str, ...], KeyComment]:
    """Return the keys, with comments, of a config and of its parents in the same folder."""
    names = reversed(list(_with_parents(repository, config_path)))
    return {each.path: each for name in names if (file := repository.file_of(name)) for each in key_comments(file)}


def _to_group(key: KeyComment) -> _Group | None:
    """Return the group of an entry of a defaults list; None for Hydra's own groups and for other keys."""
    name = key.path[1] if key.path[0] == "defaults" and len(key.path) == 2 else ""
    if not name or name == key.value or name.split()[-1].lstrip("/").startswith("hydra/"):
        return None
    return _Group(name.split()[-1], None if key.value == "null" else key.value, key.comment)


def _header_and_examples(repository: Repository, names: Sequence[str]) -> tuple[str, str]:
    """Return the header and the examples of the first config that has them."""
    for file in filter(None, map(repository.file_of, names)):
        texts = read_yaml(file).plain().get("hydra", {}).get("help", {})
        if "header" in texts:
            return texts["header"].strip("\n"), str(texts.get("footer", "")).strip("\n")
    return "", ""


def _format_groups(repository: Repository, groups: Sequence[_Group]) -> list[str]:
    """Return two lines per group: its description, and its options with the chosen one first."""
    if not groups:
        return []
    width = max(len(group.key) for group in groups) + 4
    lines = _format_heading("Config groups, group=option (default first)")
    for group in groups:
        lines.append(_truncate(f"  {group.key.ljust(width - 2)}{_summarize_group(repository, group)}"))
        options = repository.options(group.name)
        ordered = [group.option or "(no default)", *(option for option in options if option != group.option)]
        indent = " " * width
        lines += textwrap.wrap(", ".join(ordered), _WIDTH, initial_indent=indent, subsequent_indent=indent)
    return lines


def _summarize_group(repository: Repository, group: _Group) -> str:
    """Return the comment of a group in the defaults list, else that of its chosen or first option."""
    if group.comment:
        return first_sentence(group.comment)
    option = group.option or next(iter(repository.options(group.name)), None)
    file = None if option is None else repository.file_of(f"{group.name}/{option}")
    return "" if file is None else first_sentence(head_comment(file))


def _format_top_level(keys: Sequence[KeyComment]) -> list[str]:
    named = {each.path[0] + ("" if not each.value else f"={each.value}"): each for each in keys if len(each.path) == 1}
    named = {name.replace("=???", "=..."): each for name, each in named.items()}
    if not named:
        return []
    width = min(max(map(len, named)), 36) + 4
    lines = _format_heading("Options, key=default (... is required)")
    for name, each in named.items():
        if len(name) > width - 4:
            name = each.path[0]
        lines.append(_truncate(f"  {name.ljust(width - 2)}{each.summary}"))
    return lines


def _format_every_key(repository: Repository, keys: Sequence[KeyComment], groups: Sequence[_Group]) -> list[str]:
    lines = _format_heading("Options, key: default")
    for each in keys:
        lines += _format_key(each, "")
    for group in groups:
        file = None if group.option is None else repository.file_of(f"{group.name}/{group.option}")
        lines += ["", f"{group.key}={group.option or 'null'} ({', '.join(repository.options(group.name))})"]
        if file is None:
            lines += textwrap.wrap(
                _summarize_group(repository, group), _WIDTH, initial_indent="    ", subsequent_indent="    "
            )
            continue
        text = file.read_text(encoding="utf-8")
        package = "" if "@package _global_" in text.partition("\n")[0] else group.key.partition("@")[2] or group.name
        lines += textwrap.wrap(head_comment(file), _WIDTH, initial_indent="    ", subsequent_indent="    ")
        for each in _comments_by_path(repository, f"{group.name}/{group.option}").values():
            if each.path[0] not in ("defaults", "hydra"):
                lines += _format_key(each, f"{package.replace('/', '.')}." if package else "")
    return lines


def _format_heading(text: str) -> list[str]:
    return ["", text, "-" * len(text)]


def _truncate(line: str) -> str:
    return line if len(line) <= _WIDTH else f"{line[: _WIDTH - 3].rstrip()}..."


def _format_key(key: KeyComment, prefix: str) -> list[str]:
    indent = " " * 6
    name = f"  {prefix}{'.'.join(key.path)}: {key.value}".rstrip()
    return [name, *textwrap.wrap(key.comment, _WIDTH, initial_indent=indent, subsequent_indent=indent)]

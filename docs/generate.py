"""Write the generated pages of the documentation: config, command line, error codes, API, results of experiments.

    python docs/generate.py

It reads configs and source files and imports no part of the package that needs PyTorch.
"""

from __future__ import annotations

import ast
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import griffe
import yaml
from error_codes import error_codes

DOCS = Path(__file__).resolve().parent
ROOT, PAGES = DOCS.parent, DOCS / "pages"
CONF, PACKAGE, EXPERIMENTS = ROOT / "conf", ROOT / "ret_lightning", ROOT / "experiments"
sys.path.insert(0, str(ROOT))

from ret_lightning.commands.help_page import help_page  # noqa: E402 -- the checkout's own, wherever this runs
from ret_lightning.commands.key_comments import KeyComment, key_comments  # noqa: E402

# The packages whose `__init__` lists public names, in the order of the API page.
PUBLIC = ("", "losses", "models", "models.backbones", "inputs", "data", "training", "evaluation", "retrieval", "search")
STUDIES = (
    "demo", "gates", "recurrence", "tokens", "sharing", "late_interaction", "backbones", "fault_tolerance",
)  # fmt: skip
WIDE = "---\nhide:\n  - toc\n---\n\n"  # for pages of wide tables
NOTE = "<!-- Written by docs/generate.py; do not edit. -->\n\n"


def main() -> None:
    """Write every generated page."""
    (PAGES / "reference").mkdir(parents=True, exist_ok=True)
    (PAGES / "reference" / "config.md").write_text(NOTE + config_page(), encoding="utf-8")
    (PAGES / "reference" / "command-line.md").write_text(NOTE + command_page(), encoding="utf-8")
    (PAGES / "reference" / "error-codes.md").write_text(WIDE + NOTE + error_page(), encoding="utf-8")
    (PAGES / "reference" / "api.md").write_text(NOTE + api_page(), encoding="utf-8")
    copy_studies()
    for name in ("CHANGELOG", "CONTRIBUTING"):
        text = (ROOT / f"{name}.md").read_text(encoding="utf-8")
        text = text.replace("](docs/pages/", "](").replace(
            "](LICENSE)", "](https://www.apache.org/licenses/LICENSE-2.0)"
        )
        (PAGES / f"{name.lower()}.md").write_text(NOTE + text, encoding="utf-8")


# Commands ------------------------------------------------------------------------------------------------------------


def commands() -> dict[str, str]:
    """The console scripts and the primary config of each, as pyproject.toml lists them."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    scripts = re.findall(r'^(ret-[\w-]+) = "ret_lightning\.commands\.(\w+):main"', text, re.MULTILINE)
    return {script: module for script, module in scripts if (CONF / f"{module}.yaml").is_file()}


def command_page() -> str:
    parts = [
        "# Command line\n",
        "Every command reads Hydra configs: choose a file of a group with `group=option`, change a value with "
        "`key=value`. Keys are described in [Config](config.md), errors in [Error codes](error-codes.md).\n",
        "| exit code | meaning |\n|---|---|\n| 0 | success |\n"
        "| 1 | a failure; `ret-check`: something would fail in training |\n"
        "| 2 | an error in the config or on the command line; nothing ran |\n| 130 | interrupted (Ctrl-C) |\n"
        "| 128 + n | stopped by signal n after saving, see [Fault tolerance](../fault-tolerance.md) |\n",
    ]
    for script, name in commands().items():
        parts += [f"## {script}\n", f"```text\n{help_page([str(CONF)], name, script).strip()}\n```\n"]
    return "\n".join(parts)


# Config --------------------------------------------------------------------------------------------------------------


@dataclass
class Types:
    """Types of config keys: of the top level from the schema, inside a `_target_` from the signature of what it builds."""

    package: griffe.Module

    @classmethod
    def load(cls) -> Types:
        return cls(griffe.load("ret_lightning", search_paths=[str(ROOT)], resolve_aliases=True, allow_inspection=False))

    def of_schema(self, command: str) -> dict[str, str]:
        """The annotations of `TrainConfig` and its like."""
        schema = self.package["config.schema"].members.get(f"{command.title()}Config")
        return (
            {name: str(each.annotation) for name, each in schema.members.items() if each.is_attribute} if schema else {}
        )

    def of_target(self, target: str) -> dict[str, str]:
        """The annotations of a constructor's or function's arguments; empty for other libraries."""
        if not target.startswith("ret_lightning."):
            return {}
        built = self.package[target.removeprefix("ret_lightning.")]
        found: dict[str, str] = {}
        for each in [*reversed(built.mro()), built] if built.is_class else [built]:
            parameters = each.parameters if each.is_class or each.is_function else []
            found |= {p.name: str(p.annotation) for p in parameters if p.annotation is not None}
        return found


def config_page() -> str:
    types, scripts = Types.load(), commands()
    parts = [
        "# Config\n",
        "Every key of every config of the package, with its type, its default and its comment. The type of a key of another "
        "library (Lightning, PyTorch) is that of its default. `???` must be set. `ret-train --cfg job` prints the config of a "
        "command line; `ret-train --help all` describes the keys of the options in use.\n",
        "## Commands\n",
    ]
    for script, name in scripts.items():
        parts += [f"### {script}\n", *_file(CONF / f"{name}.yaml", types, types.of_schema(name))]
    for folder in sorted(f for f in CONF.iterdir() if f.is_dir() and f.name != "hydra" and any(f.glob("*.yaml"))):
        parts.append(f"## {folder.name}\n")
        for file in sorted(folder.glob("*.yaml")):
            title = f"{folder.name}={file.stem}" if not file.stem.startswith("_") else f"{folder.name}/{file.stem}"
            parts += [f"### `{title}` {{#{folder.name}-{file.stem.strip('_')}}}\n", *_file(file, types, {})]
    return "\n".join(parts)


def _file(file: Path, types: Types, schema: dict[str, str]) -> Iterator[str]:
    if prose := _prose(file):
        yield f"{_escape(prose)}\n"
    keys = [key for key in key_comments(file) if key.path[0] != "hydra"]
    parents = [key for key in keys if key.path[0] == "defaults" and len(key.path) > 1]
    inherited = [
        key.path[1] for key in parents
        if (file.parent / f"{key.path[1]}.yaml").is_file() and file.parent != CONF and key.path[1] != "_self_"
    ]  # fmt: skip
    if inherited:
        links = (f"[`{name}`](#{file.parent.name}-{name.strip('_')})" for name in inherited)
        yield f"On top of {', '.join(links)}.\n"
    groups = [key for key in parents if key.comment and file.parent == CONF]
    if groups:
        yield "| group | default | |\n|---|---|---|"
        for key in groups:
            yield f"| `{key.path[1].removeprefix('override ').lstrip('/')}` | `{key.value}` | {_cell(key.comment)} |"
        yield ""
    rows = [key for key in keys if key.path[0] != "defaults" and (key.value or key.comment)]
    targets = {key.path[:-1]: key.value for key in keys if key.path[-1] == "_target_"}
    if not rows:
        return
    is_global = file.parent == CONF or "@package _global_" in file.read_text(encoding="utf-8")
    prefix = "" if is_global else f"{file.parent.name}."
    yield "| key | type | default | |\n|---|---|---|---|"
    for key in rows:
        name = prefix + ".".join(key.path)
        if key.path[-1] in ("_target_", "_partial_"):
            built = "builds" if key.path[-1] == "_target_" else ""
            yield f"| `{name}` | {'target' if built else 'bool'} | `{key.value}` | {_cell(key.comment) or built} |"
            continue
        yield f"| `{name}` | {_type(key, types, targets, schema)} | {_default(key)} | {_cell(key.comment)} |"
    yield ""


def _type(key: KeyComment, types: Types, targets: dict[tuple[str, ...], str], schema: dict[str, str]) -> str:
    annotation = None
    if len(key.path) == 1 and key.path[0] in schema:
        annotation = schema[key.path[0]]
    elif key.path[:-1] in targets:
        annotation = types.of_target(targets[key.path[:-1]]).get(key.path[-1])
    if annotation and annotation not in ("Any", "object"):
        return f"`{annotation}`"
    if not key.value:
        return "mapping"
    value = yaml.safe_load(key.value) if not key.value.endswith("...") else key.value
    kinds = {bool: "bool", int: "int", float: "float", str: "str", list: "list", dict: "mapping", type(None): ""}
    return "" if "${" in key.value or key.value == "???" else kinds[type(value)]


def _default(key: KeyComment) -> str:
    return f"`{key.value}`" if key.value else ""


def _cell(text: str) -> str:
    return _escape(text).replace("|", "\\|")


def _escape(text: str) -> str:
    """Text of a comment as Markdown: no HTML, links or emphasis out of placeholders."""
    parts = re.split(r"(`[^`]*`|https?://\S+)", text)
    return "".join(p if i % 2 else re.sub(r"([<>*_\[\]])", r"\\\1", p) for i, p in enumerate(parts))


def _prose(file: Path) -> str:
    """The first paragraphs of a file's header, without its commands."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.removeprefix("#").removeprefix(" ")
        if not text.startswith(("@", "  ")):
            lines.append(text.strip())
    return re.sub(r"\n{2,}", "\n\n", "\n".join(lines)).strip()


# Errors --------------------------------------------------------------------------------------------------------------


def error_page() -> str:
    rows = [
        f'| <span id="{each.code}">`{each.code}`</span> | {_code_cell(each.kinds)} | '
        f"{'<br>'.join(map(_message_cell, each.messages))} | {_code_cell(each.modules)} |"
        for each in error_codes()
    ]
    return "\n".join(
        [
            "# Error codes\n",
            "Every error of every command ends in its code in brackets. Codes do not change between versions. In Python an "
            "error is a `ret_lightning.errors.UserError` with the code as `.code`, and the values that its message reports "
            "(`path`, `line`, `key`, `found`, `allowed` and others) as attributes. Names in braces are filled in by the "
            f"message; modules are relative to `ret_lightning`. There are {len(rows)} codes.\n",
            "| code | class | message | module |\n|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _code_cell(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _message_cell(message: str) -> str:
    return _cell(re.sub(r"\s+", " ", message))


# API -----------------------------------------------------------------------------------------------------------------


def public_names() -> dict[str, list[str]]:
    """Public names of each package, as its `__init__` lists them; a name of an outer package is not listed again."""
    names, seen = {}, set()
    for package in PUBLIC:
        dotted = f"ret_lightning.{package}".rstrip(".")
        folder = PACKAGE / package.replace(".", "/")
        stub = folder / "__init__.pyi"
        tree = ast.parse((stub if stub.is_file() else folder / "__init__.py").read_text(encoding="utf-8"))
        listed = []
        for node in tree.body:
            if stub.is_file() and isinstance(node, ast.ImportFrom):
                listed += [alias.asname or alias.name for alias in node.names]
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                listed += ast.literal_eval(node.value)
        names[dotted] = [name for name in sorted(listed) if name not in seen and not name.startswith("_")]
        seen.update(names[dotted])
    return names


def api_page() -> str:
    parts = [
        "# API\n",
        "The public names, by the package that they are imported from. What is not listed here may change without notice. "
        "[Train from Python](../guides/python.md) shows how the parts work together.\n",
    ]
    for package, names in public_names().items():
        docstring = ast.get_docstring(
            ast.parse((PACKAGE.parent / package.replace(".", "/") / "__init__.py").read_text())
        )
        parts += [f"## {package}\n", f"{_escape((docstring or '').splitlines()[0])}\n"]
        parts += [f"::: {package}.{name}\n" for name in names]
    return "\n".join(parts)


# Studies -------------------------------------------------------------------------------------------------------------


def copy_studies() -> None:
    """The results of the experiments as pages, with their pictures."""
    images = PAGES / "images"
    shutil.rmtree(images, ignore_errors=True)
    images.mkdir(parents=True)
    for picture in sorted(EXPERIMENTS.glob("*/*.png")):
        shutil.copyfile(picture, images / f"{picture.parent.name}_{picture.name}")
    (PAGES / "studies").mkdir(exist_ok=True)
    for name in STUDIES:
        text = (EXPERIMENTS / name / "README.md").read_text(encoding="utf-8")
        text = re.sub(r"\]\(([\w.]+\.png)\)", rf"](../images/{name}_\1)", text)
        # Links to files of the repository, which are no pages.
        text = re.sub(r"(?<!!)\[([^\]]*)\]\((?!\.\./images|https?:)([^)]*)\)", partial(_path_of, name), text)
        (PAGES / "studies" / f"{name}.md").write_text(WIDE + NOTE + text, encoding="utf-8")


def _path_of(study: str, link: re.Match[str]) -> str:
    path = (EXPERIMENTS / study / link[2]).resolve()
    shown = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else link[2]
    return f"`{shown}`" if "/" in link[1] or link[1].endswith((".yaml", ".md", ".ipynb")) else f"{link[1]} (`{shown}`)"


if __name__ == "__main__":
    main()

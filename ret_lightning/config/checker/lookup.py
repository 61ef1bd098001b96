"""What a dotted name stands for, found in source files and never by importing them.

Packages are found as the import system finds them, parsed with `ast`, and names followed through imports, re-exports,
aliases and base classes, as Python would at run time. What cannot be told without running code (an extension module's
content, an attribute made at run time) is None or an `Outside`, and the caller leaves it to the moment of building.
"""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TypeAlias

from ret_lightning.config.config_errors import choices
from ret_lightning.config.target_aliases import current_target
from ret_lightning.errors import ConfigError

FunctionNode: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef

# Bases that bring neither a constructor nor anything else that a config could name.
PLAIN_BASES = {"builtins.object", "abc.ABC", "typing.Generic", "typing.Protocol"}

# Where following a name stops: code that no config builds, named rather than read.
_LIBRARY = sys.stdlib_module_names | {"typing_extensions"}


class UnknownTarget(ConfigError):
    """A dotted name that plainly does not exist; the message says which part, and what there is instead."""


@dataclass(frozen=True)
class Import:
    """A name bound by an import statement: the module itself, or `name` in it."""

    module: str
    name: str | None


class Module:
    """One module, found but not imported: the names that its top level binds, and where its submodules lie."""

    def __init__(self, name: str, path: Path | None, locations: list[str] | None, readable: bool) -> None:
        self.name = name
        self.path = path  # None for a namespace package and for what has no source
        self.locations = locations  # the folders of a package; None for a plain module
        self.readable = readable  # False for an extension module, whose names nobody can list

    @cached_property
    def tree(self) -> ast.Module:
        try:
            source = self.path.read_bytes() if self.path else b""
            tree = ast.parse(source)
            if b"attach_stub" in source and (stub := self.path.with_suffix(".pyi")).is_file():
                tree.body += ast.parse(
                    stub.read_bytes()
                ).body  # the names that `lazy_loader` imports when they are asked for
            return tree
        except SyntaxError as error:
            raise UnknownTarget(
                f"{self.path}:{error.lineno} is broken Python: {error.msg}",
                code="target-broken-source",
                path=self.path,
                line=error.lineno,
            ) from error

    @cached_property
    def names(self) -> dict[str, ast.AST | Import]:
        return _bindings(self.tree.body, self)

    @cached_property
    def stars(self) -> list[str]:
        """The modules of `from x import *`."""
        return [
            self.absolute(node)
            for node in ast.walk(self.tree)
            if isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
        ]

    @cached_property
    def dynamic(self) -> bool:
        """Whether names may appear at run time that no statement binds."""
        if "__getattr__" in self.names:
            return True
        sources = (node for node in ast.walk(self.tree) if isinstance(node, ast.Name | ast.Attribute))
        return any(ast.unparse(node) in ("globals", "sys.modules") for node in sources)

    def absolute(self, node: ast.ImportFrom) -> str:
        """The full name of the module that a `from` statement names."""
        if not node.level:
            return node.module or ""
        package = self.name.split(".") if self.locations is not None else self.name.split(".")[:-1]
        package = package[: len(package) - node.level + 1]
        return ".".join([*package, *([node.module] if node.module else [])])


@dataclass(frozen=True)
class Class:
    """A class statement, and the module it stands in."""

    module: Module
    node: ast.ClassDef

    @property
    def names(self) -> dict[str, ast.AST | Import]:
        return _class_names(self)


@dataclass(frozen=True)
class Function:
    """A function statement, the module it stands in, and the class where it is a method."""

    module: Module
    node: FunctionNode
    owner: Class | None = None  # the class it was found in


@dataclass(frozen=True)
class Expression:
    """A name bound to an expression: an alias of a type, a constant, the result of a call."""

    module: Module
    node: ast.expr


@dataclass(frozen=True)
class Outside:
    """A name of the standard library or of an extension module: known by its name, not looked into."""

    name: str


Found: TypeAlias = Module | Class | Function | Expression | Outside | None


def locate(target: str) -> Found:
    """What a dotted name stands for, found as Hydra finds it: an attribute first, else a submodule.

    Raises:
        UnknownTarget: a part of the name plainly does not exist.
    """
    first, *rest = current_target(target).split(".")
    if not all(part.isidentifier() for part in (first, *rest)):
        raise UnknownTarget(f"{target!r} is not a dotted name", code="target-not-dotted", found=target)
    if first in _LIBRARY:
        return Outside(target)
    found: Found = find_module(first)
    if found is None:
        raise UnknownTarget(f"no package {first} is installed", code="target-package-missing", found=first)
    for part in rest:
        found = member(found, part)
    return found


@cache
def find_module(name: str) -> Module | None:
    """The module of that name, asked of the import system's own finders, so that editable installs are found too."""
    parent, _, _ = name.rpartition(".")
    locations = None
    if parent:
        package = find_module(parent)
        if package is None or package.locations is None:
            return None
        locations = package.locations
    for finder in sys.meta_path:
        spec: ModuleSpec | None = finder.find_spec(name, locations) if hasattr(finder, "find_spec") else None
        if spec is not None:
            source = Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
            inside = spec.submodule_search_locations
            folders = list(inside) if inside is not None else None
            return Module(name, source, folders, readable=source is not None or (not spec.origin and bool(folders)))
    return None


def resolve_expression(node: ast.expr, module: Module, seen: frozenset[tuple[str, str]] = frozenset()) -> Found:
    """What a name, a dotted name or a subscripted one in a module's source stands for; None where it cannot be told."""
    try:
        if isinstance(node, ast.Subscript):
            return resolve_expression(node.value, module, seen)
        if isinstance(node, ast.Name) and node.id not in module.names and hasattr(builtins, node.id):
            return Outside(f"builtins.{node.id}")
        if isinstance(node, ast.Name):
            return member(module, node.id, seen)
        if isinstance(node, ast.Attribute):
            return member(resolve_expression(node.value, module, seen), node.attr)
    except UnknownTarget:
        pass
    return None


def linearize(class_: Class) -> Iterator[Class | Outside | None]:
    """The class and its bases in the order in which Python searches them (C3); None for a base that cannot be told.

    The bases' files are read only when the class itself has been passed by.
    """
    yield class_
    yield from _bases(class_)


def member(owner: Found, name: str, seen: frozenset[tuple[str, str]] = frozenset()) -> Found:
    """What `owner.name` stands for; `seen` are the names that led here, so that names bound in a circle come to an end.

    Raises:
        UnknownTarget: the owner plainly has no such name.
    """
    if isinstance(owner, Outside):
        return Outside(f"{owner.name}.{name}")
    if isinstance(owner, Class):
        return _class_member(owner, name)
    if isinstance(owner, Function):
        raise UnknownTarget(
            f"{owner.node.name} in {owner.module.name} is a function and has nothing inside",
            code="target-inside-function",
            found=name,
        )
    if not isinstance(owner, Module) or (owner.name, name) in seen:
        return None
    if not owner.readable:
        return Outside(f"{owner.name}.{name}")
    seen |= {(owner.name, name)}
    binding = owner.names.get(name)
    if binding is not None and binding != Import(owner.name, name):  # a package may import a submodule from itself
        return _bound(owner, binding, seen)
    if (submodule := find_module(f"{owner.name}.{name}")) is not None:
        return submodule
    unread: Found = None
    for star in owner.stars:
        try:
            found = _bound(owner, Import(star, name), seen)
        except UnknownTarget:
            continue
        if not isinstance(found, Outside | None):
            return found
        unread = Outside(f"{star}.{name}")
    if unread is None and not owner.dynamic:
        text = _no_such_name(owner, name)
        raise UnknownTarget(text, code="target-not-in-module", found=name, module=owner.name)
    return unread


def _bound(module: Module, binding: ast.AST | Import, seen: frozenset[tuple[str, str]]) -> Found:
    """What a name is bound to."""
    if isinstance(binding, Import):
        if binding.module.partition(".")[0] in _LIBRARY:
            return Outside(".".join(filter(None, (binding.module, binding.name))))
        found = find_module(binding.module)
        return found if binding.name is None or found is None else member(found, binding.name, seen)
    if isinstance(binding, ast.ClassDef):
        return Class(module, binding)
    if isinstance(binding, FunctionNode):
        return Function(module, binding)
    if isinstance(binding, ast.Name | ast.Attribute):
        return resolve_expression(binding, module, seen) or Expression(module, binding)
    return Expression(module, binding)


def _class_member(class_: Class, name: str) -> Found:
    for entry in linearize(class_):
        if not isinstance(entry, Class):
            if isinstance(entry, Outside) and entry.name in PLAIN_BASES:
                continue
            return None
        if name in entry.names:
            found = _bound(entry.module, entry.names[name], frozenset())
            return Function(found.module, found.node, entry) if isinstance(found, Function) else found
    methods = [key for key, value in class_.names.items() if isinstance(value, FunctionNode) and key[0] != "_"]
    owner = f"{class_.module.name}.{class_.node.name}"
    text = f"no {name} in the class {owner}{choices(name, methods)}"
    raise UnknownTarget(text, code="target-not-in-class", found=name, owner=owner)


def _no_such_name(module: Module, name: str) -> str:
    """Which kind of thing is missing from a module, and what it has of that kind."""
    names = {key: value for key, value in module.names.items() if not key.startswith("_")}
    if name[0].isupper():
        made = [key for key, value in names.items() if isinstance(value, ast.ClassDef)]
        passed_on = [key for key, value in names.items() if isinstance(value, Import) and key[0].isupper()]
        return f"no class {name} in {module.name}{choices(name, made or passed_on)}"
    folders = [Path(folder) for folder in module.locations or [] if Path(folder).is_dir()]
    files = [path for folder in folders for path in sorted(folder.iterdir()) if not path.name.startswith(("_", "."))]
    submodules = [path.stem for path in files if path.suffix == ".py" or path.is_dir()]
    functions = [key for key, value in names.items() if isinstance(value, FunctionNode)]
    kind = "module or function" if module.locations else "function"
    return f"no {kind} {name} in {module.name}{choices(name, [*submodules, *functions])}"


def _bindings(body: list[ast.stmt], module: Module) -> dict[str, ast.AST | Import]:
    """The names that statements bind, conditional ones included: the first branch of an `if` or a `try` counts."""
    names: dict[str, ast.AST | Import] = {}
    for node in body:
        if isinstance(node, ast.ClassDef | FunctionNode):
            names[node.name] = node
        elif isinstance(node, ast.Import):
            tops = {alias.name.partition(".")[0] for alias in node.names if not alias.asname}
            names.update({top: Import(top, None) for top in tops})
            names.update({alias.asname: Import(alias.name, None) for alias in node.names if alias.asname})
        elif isinstance(node, ast.ImportFrom):
            origin = module.absolute(node)
            names.update({alias.asname or alias.name: Import(origin, alias.name) for alias in node.names})
        elif isinstance(node, ast.Assign):
            names.update({target.id: node.value for target in node.targets if isinstance(target, ast.Name)})
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            names[node.target.id] = node.value
        elif type(node).__name__ == "TypeAlias":  # `type X = ...`, which Python 3.10 cannot name
            names[node.name.id] = node.value
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.For):
            others = [*getattr(node, "orelse", []), *getattr(node, "finalbody", [])]
            others += [statement for handler in getattr(node, "handlers", []) for statement in handler.body]
            names = _bindings(others, module) | names | _bindings(node.body, module)
    return names


@cache
def _class_names(class_: Class) -> dict[str, ast.AST | Import]:
    return _bindings(class_.node.body, class_.module)


@cache
def _bases(class_: Class) -> list[Class | Outside | None]:
    found = [resolve_expression(base, class_.module) for base in class_.node.bases]
    known = [base if isinstance(base, Class | Outside) and base != class_ else None for base in found]
    lines = [[base, *_bases(base)] if isinstance(base, Class) else [base] for base in known] + [known]
    order: list[Class | Outside | None] = []
    while lines := [line for line in lines if line]:
        heads = [line[0] for line in lines]
        head = next((head for head in heads if not any(head in line[1:] for line in lines)), heads[0])
        order.append(head)
        lines = [[entry for entry in line if entry != head] for line in lines]
    return order

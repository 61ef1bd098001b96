"""Whether a value fits a parameter's annotation, as far as the annotation's source tells.

A config holds numbers, strings, lists and mappings; an annotation may say anything. What is understood: the plain
types, None, unions, Literal, lists, tuples, mappings, paths, aliases of all these, and classes (which no number or string
is). Everything else fits: a check that refuses a right config is worse than one that misses a mistake.
"""

from __future__ import annotations

import ast
from pathlib import PurePath
from typing import Any

from ret_lightning.config.checker.lookup import Class, Expression, Module, Outside, linearize, resolve_expression
from ret_lightning.config.checker.signatures import Parameter, is_dataclass
from ret_lightning.config.config_errors import choices, show_value
from ret_lightning.errors import ConfigError

_LISTS = {"list", "List", "Sequence", "MutableSequence", "Iterable", "Collection"}
_LISTS |= {"set", "Set", "frozenset", "FrozenSet"}
_TUPLES = {"tuple", "Tuple"}
_MAPPINGS = {"dict", "Dict", "Mapping", "MutableMapping"}
_PATHS = {"Path", "PurePath", "PathLike"}
_WRAPPERS = {"Annotated", "Final", "Required", "NotRequired", "InitVar", "ClassVar"}
# A class that derives from one of these may well take a plain value.
_PLAIN = {"str", "int", "float", "bytes", "dict", "list", "tuple", "set", "Protocol", "TypedDict", "NamedTuple"}
_PLAIN |= {"Enum", "IntEnum", "StrEnum", "Flag", "IntFlag"}


def problem(parameter: Parameter, value: Any) -> ConfigError | None:
    """What is wrong with a value for a parameter, or None where it fits or nobody can tell.

    `value` is made of plain containers. An interpolation or a `???` in it fits everything: what it becomes is another
    matter. A mapping with a `_target_` fits too, since what it builds is known only when it is built.
    """
    annotation = parameter.annotation
    if annotation is None or (value is None and parameter.nullable) or _fits(annotation.node, annotation.module, value):
        return None
    expected = _describe(annotation.node, annotation.module)
    literals = _literals(annotation.node, annotation.module)
    hint = ""
    if literals and not isinstance(value, dict | list):
        hint = choices(value, literals)
    elif isinstance(value, int | float) and _fits(annotation.node, annotation.module, "text"):
        hint = "; quotes make it a string"
    elif len(_classes(annotation.node, annotation.module)) == len(_members(annotation.node, annotation.module)):
        hint = "; it takes a mapping with a _target_"
    return ConfigError(
        f"wants {expected}, got {show_value(value)}{hint}",
        code="value-of-wrong-type",
        expected=expected,
        found=show_value(value),
        allowed=tuple(literals),
    )


def dataclass_in(annotation: Expression | None) -> Class | None:
    """The dataclass that an annotation names, alone or beside None: a plain mapping there must have its fields."""
    if annotation is None:
        return None
    classes = _classes(annotation.node, annotation.module)
    return classes[0] if len(classes) == 1 and is_dataclass(classes[0]) else None


def element_of(annotation: Expression | None, container: type[dict] | type[list]) -> Expression | None:
    """The annotation of a mapping's values or a list's items, where it has one; of a union, that of the kind at hand."""
    if annotation is None:
        return None
    for node, module in _members(annotation.node, annotation.module):
        name, arguments, _ = _head(node, module)
        if name in (_MAPPINGS if container is dict else _LISTS) and arguments:
            return Expression(module, arguments[-1])
    return None


def _fits(node: ast.expr, module: Module, value: Any) -> bool:
    if isinstance(value, str) and ("${" in value or value == "???"):
        return True
    if isinstance(value, dict) and "_target_" in value:
        return True
    members = _members(node, module)
    if len(members) > 1:
        return any(_fits(member, at, value) for member, at in members)
    ((node, module),) = members
    if isinstance(node, ast.Constant):
        return value is None if node.value is None else True
    name, arguments, found = _head(node, module)
    if name in ("int", "bool", "str"):
        return type(value).__name__ == name
    if name == "float":
        return type(value) in (int, float)
    if name in ("None", "NoneType"):
        return value is None
    if name == "Literal":
        return any(_same(argument, value) for argument in arguments)
    if name in _PATHS:
        return isinstance(value, str | PurePath)
    if name in _LISTS:
        return isinstance(value, list) and all(_fits(arguments[0], module, item) for item in value if arguments)
    if name in _TUPLES:
        return isinstance(value, list) and _fits_tuple(arguments, module, value)
    if name in _MAPPINGS:
        inner = arguments[1] if len(arguments) == 2 else None
        return isinstance(value, dict) and all(_fits(inner, module, item) for item in value.values() if inner)
    if name == "Callable" or (isinstance(found, Class) and _is_opaque(found)):
        return isinstance(value, dict | list)
    return True


def _fits_tuple(arguments: list[ast.expr], module: Module, value: list[Any]) -> bool:
    if not arguments:
        return True
    if isinstance(arguments[-1], ast.Constant) and arguments[-1].value is ...:
        return all(_fits(arguments[0], module, item) for item in value)
    pairs = zip(arguments, value, strict=False)
    return len(arguments) == len(value) and all(_fits(argument, module, item) for argument, item in pairs)


def _members(node: ast.expr, module: Module) -> list[tuple[ast.expr, Module]]:
    """The members of a union, through aliases, quotes and wrappers; the annotation itself where it is no union."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        try:
            return _members(ast.parse(node.value, mode="eval").body, module)
        except SyntaxError:
            return [(node, module)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return [*_members(node.left, module), *_members(node.right, module)]
    name, arguments, found = _head(node, module)
    if name == "Union":
        return [member for argument in arguments for member in _members(argument, module)]
    if name == "Optional" and arguments:
        return [*_members(arguments[0], module), (ast.Constant(None), module)]
    if name in _WRAPPERS and arguments:
        return _members(arguments[0], module)
    if isinstance(found, Expression) and not arguments and found.node is not node:
        return _members(found.node, found.module)
    return [(node, module)]


def _head(node: ast.expr, module: Module) -> tuple[str, list[ast.expr], Any]:
    """A type's short name where it is of the standard library (else ""), what is in its brackets, what it stands for."""
    arguments: list[ast.expr] = []
    if isinstance(node, ast.Subscript):
        arguments = list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]
    found = resolve_expression(node, module) if isinstance(node, ast.Name | ast.Attribute | ast.Subscript) else None
    return (found.name.rpartition(".")[2] if isinstance(found, Outside) else ""), arguments, found


def _is_opaque(class_: Class) -> bool:
    """Whether no number or string can be an instance: every base is known, and none is a plain type."""
    bases = list(linearize(class_))
    known = all(base is not None for base in bases)
    return known and not any(isinstance(base, Outside) and base.name.rpartition(".")[2] in _PLAIN for base in bases)


def _same(node: ast.expr, value: Any) -> bool:
    """Whether a Literal's member is the value; a member that is not written out (an enum's) may be any."""
    if not isinstance(node, ast.Constant | ast.UnaryOp):
        return True
    constant = ast.literal_eval(node)
    return type(constant) is type(value) and constant == value


def _literals(node: ast.expr, module: Module) -> list[Any]:
    nodes = [
        argument
        for member, at in _members(node, module)
        for name, arguments, _ in [_head(member, at)]
        if name == "Literal"
        for argument in arguments
    ]
    return [ast.literal_eval(argument) for argument in nodes if isinstance(argument, ast.Constant | ast.UnaryOp)]


def _classes(node: ast.expr, module: Module) -> list[Class]:
    heads = [_head(member, at)[2] for member, at in _members(node, module)]
    return [found for found in heads if isinstance(found, Class)]


def _describe(node: ast.expr, module: Module, depth: int = 0) -> str:
    """An annotation in words, with "the choices" for a Literal's members, which the message lists behind."""
    if isinstance(node, ast.Constant) and node.value is ...:
        return "..."
    words: list[str] = []
    for member, at in _members(node, module):
        name, arguments, found = _head(member, at)
        if isinstance(member, ast.Constant) and member.value is None:
            words.append("null")
        elif name == "Literal":
            words.append("one of the choices")
        elif name in _LISTS | _TUPLES:
            inner = [_describe(argument, at, depth + 1) for argument in arguments] if depth < 2 else []
            words.append(f"a list of ({', '.join(inner)})" if inner else "a list")
        elif name in _MAPPINGS:
            words.append("a mapping")
        elif name in _PATHS:
            words.append("a path")
        else:
            words.append(found.node.name if isinstance(found, Class) else name or ast.unparse(member))
    return " or ".join(dict.fromkeys(words))

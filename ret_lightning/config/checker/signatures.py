"""What a class or function takes, read from its source.

A check that must answer before PyTorch is imported cannot ask `inspect.signature`. A constructor is looked for along
the bases, as Python does; a dataclass's is put together from its fields. Where the source does not tell (a C extension,
an unknown decorator) the signature is None, and the caller leaves it to the moment of building.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ret_lightning.config.checker.lookup import (
    PLAIN_BASES,
    Class,
    Expression,
    Found,
    Function,
    FunctionNode,
    Module,
    Outside,
    find_module,
    linearize,
    locate,
    member,
    resolve_expression,
)

# Decorators that leave a function's parameters as written; one of ours or of another library must call `wraps`.
_HARMLESS = {"abc.abstractmethod", "builtins.classmethod", "builtins.staticmethod", "contextlib.contextmanager"}
_HARMLESS |= {"functools.cache", "functools.lru_cache", "warnings.deprecated"}
_HARMLESS |= {f"typing.{name}" for name in ("final", "no_type_check", "overload", "override")}
_HARMLESS |= {f"typing_extensions.{name}" for name in ("deprecated", "final", "override")}


@dataclass(frozen=True)
class Parameter:
    """One parameter that a config key can set."""

    name: str
    required: bool
    annotation: Expression | None = None
    nullable: bool = False  # the default is None, whatever the annotation says


@dataclass(frozen=True)
class Signature:
    """The parameters that can be given by name, in order; `open` where any other name is taken too (`**kwargs`)."""

    parameters: Mapping[str, Parameter]
    open: bool = False


@cache
def signature_of(target: str) -> Signature | None:
    """The signature of what a dotted name stands for, or None where its source does not tell.

    Raises:
        UnknownTarget: the name plainly does not exist.
    """
    found = locate(target)
    if isinstance(found, Class):
        return class_signature(found)
    return _function_signature(found) if isinstance(found, Function) else None


def signature_of_type(type_: type) -> Signature | None:
    """The signature of a class that is imported already, read from its source like all the others."""
    if type_.__module__ == "__main__":
        found: Found = Module("__main__", Path(sys.modules["__main__"].__file__), None, readable=True)
    else:
        found = find_module(type_.__module__)
    for part in type_.__qualname__.split("."):
        found = member(found, part)
    return class_signature(found) if isinstance(found, Class) else None


@cache
def class_signature(class_: Class) -> Signature | None:
    """What calling the class takes: its constructor's parameters, wherever among its bases that constructor stands."""
    for entry in linearize(class_):
        if isinstance(entry, Outside) and entry.name in PLAIN_BASES:
            continue
        if not isinstance(entry, Class):
            return None
        constructor = entry.names.get("__init__")
        if constructor is None and _dataclass_options(entry).get("init", False):
            return _fields(class_)
        if constructor is None:
            constructor = entry.names.get("__new__")
            if (
                isinstance(constructor, ast.FunctionDef)
                and constructor.args.kwarg
                and len(_named(constructor.args)) == 1
            ):
                continue  # (cls, *args, **kwargs): the parameters are those of an __init__
        if isinstance(constructor, ast.FunctionDef):
            return _parameters(constructor, entry.module, skip_first=True)
        if constructor is not None:
            return None
    return Signature({})


def is_dataclass(class_: Class) -> bool:
    """Whether the class statement has the `@dataclass` decorator."""
    return bool(_dataclass_options(class_))


def _function_signature(function: Function) -> Signature | None:
    kinds = {resolve_expression(decorator, function.module) for decorator in function.node.decorator_list}
    bound = function.owner is not None and Outside("builtins.classmethod") in kinds
    return _parameters(function.node, function.module, skip_first=bound)


def _parameters(function: FunctionNode, module: Module, *, skip_first: bool) -> Signature | None:
    if not all(_keeps_parameters(decorator, module) for decorator in function.decorator_list):
        return None
    arguments = function.args
    pairs = _named(arguments)
    if skip_first and not arguments.posonlyargs:
        pairs = pairs[1:]
    parameters = {
        argument.arg: Parameter(
            argument.arg,
            required=default is None,
            annotation=None if argument.annotation is None else Expression(module, argument.annotation),
            nullable=isinstance(default, ast.Constant) and default.value is None,
        )
        for argument, default in pairs
    }
    return Signature(parameters, open=arguments.kwarg is not None)


def _named(arguments: ast.arguments) -> list[tuple[ast.arg, ast.expr | None]]:
    """The parameters that can be given by name, each with its default."""
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + arguments.defaults
    pairs = list(zip(positional, defaults, strict=True))[len(arguments.posonlyargs) :]
    return [*pairs, *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]


def _keeps_parameters(decorator: ast.expr, module: Module) -> bool:
    found = resolve_expression(decorator.func if isinstance(decorator, ast.Call) else decorator, module)
    if isinstance(found, Outside):
        return found.name in _HARMLESS
    if isinstance(found, Class):  # torch.no_grad and its like: a class whose call wraps a function
        return found.node.name in {"no_grad", "inference_mode", "enable_grad"}
    if not isinstance(found, Function):
        return False
    calls = (node.func for node in ast.walk(found.node) if isinstance(node, ast.Call))
    return any((call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "")) == "wraps" for call in calls)


def _dataclass_options(class_: Class) -> dict[str, bool]:
    """The keywords of the class's `@dataclass`, with `init` filled in; empty where it is none."""
    for decorator in class_.node.decorator_list:
        called = decorator.func if isinstance(decorator, ast.Call) else decorator
        if resolve_expression(called, class_.module) == Outside("dataclasses.dataclass"):
            keywords = decorator.keywords if isinstance(decorator, ast.Call) else []
            given = {word.arg: word.value.value for word in keywords if isinstance(word.value, ast.Constant)}
            return {"init": True, **given}
    return {}


def _fields(class_: Class) -> Signature | None:
    """The parameters of the `__init__` that `@dataclass` writes."""
    parameters: dict[str, Parameter] = {}
    for entry in reversed([*linearize(class_)]):
        if isinstance(entry, Outside) and entry.name in PLAIN_BASES:
            continue
        if not isinstance(entry, Class):
            return None
        if not _dataclass_options(entry):
            continue
        for node in entry.node.body:
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            kind = resolve_expression(node.annotation, entry.module)
            if kind in (Outside("typing.ClassVar"), Outside("dataclasses.KW_ONLY")):
                continue
            default, options = node.value, None
            if isinstance(default, ast.Call) and resolve_expression(default.func, entry.module) == Outside(
                "dataclasses.field"
            ):
                options = {word.arg: word.value for word in default.keywords}
                default = options.get("default") or options.get("default_factory")
                if "init" in options and not getattr(options["init"], "value", True):
                    continue
            parameters[node.target.id] = Parameter(
                node.target.id,
                required=default is None,
                annotation=Expression(entry.module, node.annotation),
                nullable=isinstance(default, ast.Constant) and default.value is None,
            )
    return Signature(parameters)

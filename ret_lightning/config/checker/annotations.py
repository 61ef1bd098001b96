"""Check whether a config value matches the annotation of a parameter, with pydantic.

A config holds numbers, strings, lists and mappings. The supported annotations are the plain types, None, unions, Literal,
lists, tuples, mappings, paths, aliases of these, and classes (which never match a number or a string). Any other annotation
accepts every value: rejecting a valid config is worse than missing a problem.
"""

from __future__ import annotations

import json
import os
from collections import abc
from dataclasses import is_dataclass
from enum import Enum
from functools import cache
from pathlib import PurePath
from types import GenericAlias, NoneType, UnionType
from typing import Annotated, Any, ClassVar, Final, Literal, Union, get_args, get_origin, is_typeddict

from pydantic import AfterValidator, BeforeValidator, ConfigDict, TypeAdapter, ValidationError

from ret_lightning.config.checker.signatures import Parameter
from ret_lightning.config.config_errors import choices, format_value
from ret_lightning.errors import ConfigError

_LISTS = (list, set, frozenset, abc.Sequence, abc.MutableSequence, abc.Iterable, abc.Collection, abc.Set)
_MAPPINGS = (dict, abc.Mapping, abc.MutableMapping)
_WRAPPERS = (Annotated, Final, ClassVar)
_SCALARS = (int, float, str, bool, NoneType)
# A subclass of one of these may accept a plain value.
_PLAIN = (str, int, float, bytes, dict, list, tuple, set, Enum)


def check_value(parameter: Parameter, value: Any) -> ConfigError | None:
    """Check a config value against the annotation of a parameter.

    Interpolations, `???` and mappings with a `_target_` match every annotation, because their final value is not known.

    Args:
        parameter: the parameter.
        value: the value, in plain containers.

    Returns:
        The error, or None if the value matches or cannot be checked.
    """
    annotation = parameter.annotation
    if (value is None and parameter.nullable) or _matches(annotation, value):
        return None
    expected = _describe(annotation)
    literals = [
        choice for member in _members(annotation) if get_origin(member) is Literal for choice in get_args(member)
    ]
    hint = ""
    if literals and not isinstance(value, dict | list):
        hint = choices(value, literals)
    elif isinstance(value, int | float) and _matches(annotation, "text"):
        hint = "; quote the value to make it a string"
    elif all(map(_is_opaque, _members(annotation))):
        hint = "; use a mapping with a _target_"
    return ConfigError(
        f"expected {expected}, got {format_value(value)}{hint}",
        code="value-of-wrong-type",
        expected=expected,
        found=format_value(value),
        allowed=tuple(literals),
    )


def find_dataclass(annotation: Any) -> type | None:
    """Return the dataclass of an annotation, alone or in a union with None; else None.

    The keys of a plain mapping are then checked against the fields of the dataclass.
    """
    classes: list[type] = [member for member in _members(annotation) if _is_opaque(member)]
    return classes[0] if len(classes) == 1 and is_dataclass(classes[0]) else None


def element_annotation(annotation: Any, container: type[dict] | type[list]) -> Any:
    """Return the annotation of the values of a mapping or the items of a list.

    Args:
        annotation: the annotation of the container; in a union, the member that matches `container` is used.
        container: `dict` or `list`.

    Returns:
        The annotation of an element; Any if it is not known.
    """
    kinds = _MAPPINGS if container is dict else _LISTS
    elements = [get_args(member)[-1] for member in _members(annotation) if get_origin(member) in kinds]
    return elements[0] if elements else Any


def _matches(annotation: Any, value: Any) -> bool:
    return _is_unresolved(value) or any(
        _matches_member(_plain_annotation(member), value) for member in _members(annotation)
    )


def _matches_member(plain: Any, value: Any) -> bool:
    try:
        # JSON has the types of a config: lists validate as tuples, and strings as paths.
        _adapter(plain).validate_json(json.dumps(value, default=str), strict=True)
    except ValidationError as error:
        return all(_is_unresolved(each["input"]) for each in error.errors())
    return True


@cache
def _adapter(plain: Any) -> TypeAdapter[Any]:
    return TypeAdapter(plain, config=ConfigDict(arbitrary_types_allowed=True))


def _is_unresolved(value: Any) -> bool:
    """Return whether the final value is not known yet."""
    return (
        "_target_" in value if isinstance(value, dict) else isinstance(value, str) and ("${" in value or value == "???")
    )


def _members(annotation: Any) -> list[Any]:
    """Return the members of a union, resolving aliases and wrappers; a single annotation is returned as a list of one."""
    if hasattr(annotation, "__value__"):  # `type X = ...`
        return _members(annotation.__value__)
    if get_origin(annotation) in (Union, UnionType):
        return [inner for member in get_args(annotation) for inner in _members(member)]
    return _members(get_args(annotation)[0]) if get_origin(annotation) in _WRAPPERS else [annotation]


def _plain_annotation(annotation: Any) -> Any:
    """Return the annotation of the plain values that a config can hold for an annotation; Any if it is not known."""
    members = _members(annotation)
    if len(members) > 1:
        return Union[tuple(map(_plain_annotation, members))]  # noqa: UP007
    origin, arguments = get_origin(members[0]) or members[0], get_args(members[0])
    if origin in _SCALARS or origin is None:
        return origin
    if origin is Literal:
        return (
            Annotated[members[0], BeforeValidator(_reject_bool)]
            if all(type(each) in (int, str) for each in arguments)
            else Any
        )
    if origin in _LISTS:
        return GenericAlias(list, (_plain_annotation(arguments[0]),)) if arguments else list
    if origin is tuple:
        plain = tuple(each if each is ... else _plain_annotation(each) for each in arguments)
        return GenericAlias(tuple, plain) if arguments else list
    if origin in _MAPPINGS:
        return GenericAlias(dict, (Any, _plain_annotation(arguments[1]))) if arguments else dict
    if isinstance(origin, type) and (issubclass(origin, PurePath) or origin is os.PathLike):
        return str
    return _ContainerValue if _is_opaque(members[0]) or origin is abc.Callable else Any


def _is_opaque(annotation: Any) -> bool:
    """Return whether an annotation is a class that no number or string is an instance of."""
    origin = get_origin(annotation) or annotation
    if not isinstance(origin, type) or origin in (
        Any,
        object,
        *_SCALARS,
        *_LISTS,
        *_MAPPINGS,
        abc.Callable,
        os.PathLike,
    ):
        return False
    protocol = getattr(origin, "_is_protocol", False)
    return not (protocol or is_typeddict(origin) or issubclass(origin, (*_PLAIN, PurePath)))


def _reject_bool(value: Any) -> Any:
    if isinstance(value, bool):  # in Python, and so in pydantic, True == 1
        raise ValueError("a bool is not a number")
    return value


def _require_container(value: Any) -> Any:
    if not isinstance(value, dict | list):
        raise ValueError("a number or string is not an object")
    return value


_ContainerValue = Annotated[Any, AfterValidator(_require_container)]


def _describe(annotation: Any, depth: int = 0) -> str:
    """Format an annotation for messages; "one of the choices" stands for a Literal, whose members the message lists."""
    words: list[str] = []
    for member in _members(annotation):
        origin, arguments = get_origin(member) or member, get_args(member)
        if member is ...:
            words.append("...")
        elif member in (None, NoneType):
            words.append("null")
        elif origin is Literal:
            words.append("one of the choices")
        elif origin in (*_LISTS, tuple):
            inner = [_describe(argument, depth + 1) for argument in arguments] if depth < 2 else []
            words.append(f"a list of ({', '.join(inner)})" if inner else "a list")
        elif origin in _MAPPINGS:
            words.append("a mapping")
        elif isinstance(origin, type) and (issubclass(origin, PurePath) or origin is os.PathLike):
            words.append("a path")
        else:
            words.append(getattr(origin, "__name__", str(origin)))
    return " or ".join(dict.fromkeys(words))

"""Whether a value of a config fits a parameter's annotation; pydantic decides.

A config holds numbers, strings, lists and mappings; an annotation may say anything. What is understood: the plain types, None,
unions, Literal, lists, tuples, mappings, paths, aliases of all these, and classes (which no number or string is). Everything
else fits: a check that refuses a right config is worse than one that misses a problem.
"""

from __future__ import annotations

import json
import os
from collections import abc
from dataclasses import is_dataclass
from enum import Enum
from functools import cache
from pathlib import PurePath
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Final, Literal, Union, get_args, get_origin, is_typeddict

from pydantic import AfterValidator, BeforeValidator, ConfigDict, TypeAdapter, ValidationError

from ret_lightning.config.checker.signatures import Parameter
from ret_lightning.config.config_errors import choices, show_value
from ret_lightning.errors import ConfigError

_LISTS = (list, set, frozenset, abc.Sequence, abc.MutableSequence, abc.Iterable, abc.Collection, abc.Set)
_MAPPINGS = (dict, abc.Mapping, abc.MutableMapping)
_WRAPPERS = (Annotated, Final, ClassVar)
_SCALARS = (int, float, str, bool, NoneType)
# A class that derives from one of these may well take a plain value.
_PLAIN = (str, int, float, bytes, dict, list, tuple, set, Enum)


def problem(parameter: Parameter, value: Any) -> ConfigError | None:
    """What is wrong with a value for a parameter, or None where it fits or nobody can tell.

    `value` is made of plain containers. An interpolation or a `???` in it fits everything: what it becomes is another
    matter. A mapping with a `_target_` fits too, since what it builds is known only when it is built.
    """
    annotation = parameter.annotation
    if (value is None and parameter.nullable) or _fits(annotation, value):
        return None
    expected = _describe(annotation)
    literals = [
        choice for member in _members(annotation) if get_origin(member) is Literal for choice in get_args(member)
    ]
    hint = ""
    if literals and not isinstance(value, dict | list):
        hint = choices(value, literals)
    elif isinstance(value, int | float) and _fits(annotation, "text"):
        hint = "; quotes make it a string"
    elif all(map(_is_opaque, _members(annotation))):
        hint = "; it takes a mapping with a _target_"
    return ConfigError(
        f"wants {expected}, got {show_value(value)}{hint}",
        code="value-of-wrong-type",
        expected=expected,
        found=show_value(value),
        allowed=tuple(literals),
    )


def dataclass_in(annotation: Any) -> type | None:
    """The dataclass that an annotation names, alone or with None: a plain mapping there must have its fields."""
    classes = [member for member in _members(annotation) if _is_opaque(member)]
    return classes[0] if len(classes) == 1 and is_dataclass(classes[0]) else None


def element_of(annotation: Any, container: type[dict] | type[list]) -> Any:
    """The annotation of a mapping's values or a list's items; of a union, that of the kind at hand."""
    kinds = _MAPPINGS if container is dict else _LISTS
    elements = [get_args(member)[-1] for member in _members(annotation) if get_origin(member) in kinds]
    return elements[0] if elements else Any


def _fits(annotation: Any, value: Any) -> bool:
    return _is_open(value) or any(_fits_member(_plain(member), value) for member in _members(annotation))


def _fits_member(plain: Any, value: Any) -> bool:
    try:
        # JSON, since it has the types of a config: a list is a tuple there, and a string a path.
        _adapter(plain).validate_json(json.dumps(value, default=str), strict=True)
    except ValidationError as error:
        return all(_is_open(each["input"]) for each in error.errors())
    return True


@cache
def _adapter(plain: Any) -> TypeAdapter[Any]:
    return TypeAdapter(plain, config=ConfigDict(arbitrary_types_allowed=True))


def _is_open(value: Any) -> bool:
    """Whether nobody can tell yet what a value becomes."""
    return (
        "_target_" in value if isinstance(value, dict) else isinstance(value, str) and ("${" in value or value == "???")
    )


def _members(annotation: Any) -> list[Any]:
    """The members of a union, through aliases and wrappers; the annotation itself where it is no union."""
    if hasattr(annotation, "__value__"):  # `type X = ...`
        return _members(annotation.__value__)
    if get_origin(annotation) in (Union, UnionType):
        return [inner for member in get_args(annotation) for inner in _members(member)]
    return _members(get_args(annotation)[0]) if get_origin(annotation) in _WRAPPERS else [annotation]


def _plain(annotation: Any) -> Any:
    """The annotation of what a config can hold for this one; Any where nobody can tell."""
    members = _members(annotation)
    if len(members) > 1:
        return Union[tuple(map(_plain, members))]  # noqa: UP007
    origin, arguments = get_origin(members[0]) or members[0], get_args(members[0])
    if origin in _SCALARS or origin is None:
        return origin
    if origin is Literal:
        return (
            Annotated[members[0], BeforeValidator(_no_bool)]
            if all(type(each) in (int, str) for each in arguments)
            else Any
        )
    if origin in _LISTS:
        return list[_plain(arguments[0])] if arguments else list
    if origin is tuple:
        return tuple[tuple(each if each is ... else _plain(each) for each in arguments)] if arguments else list
    if origin in _MAPPINGS:
        return dict[Any, _plain(arguments[1])] if arguments else dict
    if isinstance(origin, type) and (issubclass(origin, PurePath) or origin is os.PathLike):
        return str
    return _Container if _is_opaque(members[0]) or origin is abc.Callable else Any


def _is_opaque(annotation: Any) -> bool:
    """Whether it is a class of which no number or string can be an instance."""
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


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):  # to Python, and so to pydantic, true is 1
        raise ValueError("a bool is not a number")
    return value


def _container(value: Any) -> Any:
    if not isinstance(value, dict | list):
        raise ValueError("a number or string is no object")
    return value


_Container = Annotated[Any, AfterValidator(_container)]


def _describe(annotation: Any, depth: int = 0) -> str:
    """An annotation in words, with "the choices" for a Literal's members, which the message lists."""
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

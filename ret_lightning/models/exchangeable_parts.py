"""Exchangeable parts: the settings that they were built with, and how a checkpoint that names them finds their classes.

A checkpoint is data, so nothing is imported because it says so: a class is found among those that are imported, and then in
the packages that the user named in RET_LIGHTNING_TARGETS.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from ret_lightning.config.targets.allowed_targets import is_in

T = TypeVar("T")
_PACKAGE = __name__.partition(".")[0]


def subclasses(parent: type[T]) -> Iterator[type[T]]:
    """Every class below one, at any depth."""
    for child in parent.__subclasses__():
        yield child
        yield from subclasses(child)


def constructor_settings(part: object, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The arguments of a constructor by name, defaults included, without the width: `hidden_size`, or else the first one.

    Args:
        part: an instance of the class, not yet initialised.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.

    Returns:
        None if the constructor does not take the arguments, or if some of them have no name (`*args`). Lists and mappings are
        copies: the constructor may change its arguments.
    """
    signature = inspect.signature(type(part).__init__)
    try:
        bound = signature.bind(part, *args, **kwargs)
    except TypeError:
        return None
    bound.apply_defaults()
    parameters = dict(list(signature.parameters.items())[1:])  # without self
    width = "hidden_size" if "hidden_size" in parameters else next(iter(parameters), "")
    settings: dict[str, Any] = {}
    for name, parameter in parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            if len(bound.arguments[name]) > (name == width):
                return None
        elif parameter.kind is parameter.VAR_KEYWORD:
            settings |= bound.arguments[name]
        elif name != width:
            settings[name] = bound.arguments[name]
    return copied(settings)


def copied(value: Any) -> Any:
    """A value whose lists, tuples, sets and mappings are copies at any depth; other objects are the same ones."""
    if type(value) is dict:
        return {key: copied(item) for key, item in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(map(copied, value))
    return value


def call_with_copies(factory: Callable[..., T], *args: Any) -> T:
    """The result of a factory; of a `functools.partial`, which keeps its keyword arguments, with copies of these."""
    keywords = copied(factory.keywords) if isinstance(factory, partial) else {}
    return factory(*args, **keywords)


def json_value(value: Any) -> Any:
    """A setting as JSON stores it; a tuple becomes a list.

    Raises:
        TypeError: if JSON cannot store it.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if isinstance(value, dict):
        if other := [key for key in value if type(key) is not str]:
            raise TypeError(f"{other[0]!r} is a key of a mapping, and keys must be texts")
        return {key: json_value(item) for key, item in value.items()}
    raise TypeError(f"{type(value).__name__} is not JSON")


def described_value(value: Any) -> Any:
    """A setting as JSON stores it, or else a text that is equal in every process."""
    try:
        return json_value(value)
    except TypeError:
        named = getattr(value, "__qualname__", None)
        return f"{value.__module__}.{named}" if named else re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def class_name(part: object) -> str:
    """The dotted name of the class of a part."""
    return f"{type(part).__module__}.{type(part).__qualname__}"


def is_own(part: object) -> bool:
    """Whether the class of a part is the user's own, not of this package."""
    return not is_in(type(part).__module__, (_PACKAGE,))

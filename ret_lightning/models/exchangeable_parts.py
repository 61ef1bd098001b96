"""Exchangeable parts (gates, tokenizers, image transforms): their constructor settings, and their lookup by name.

A checkpoint never triggers arbitrary imports: a class is searched among the imported classes, and then in the packages that
the user lists in RET_LIGHTNING_TARGETS.
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
    """Yield all direct and indirect subclasses of a class."""
    for child in parent.__subclasses__():
        yield child
        yield from subclasses(child)


def constructor_settings(part: object, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the arguments of a constructor call by name, including defaults, without the width.

    The width is the parameter `hidden_size`, or the first parameter if none has this name.

    Args:
        part: Instance of the class, not yet initialised.
        args: Positional arguments of the call.
        kwargs: Keyword arguments of the call.

    Returns:
        Argument names and values; None if the constructor does not accept the arguments, or some of them have no name
        (`*args`). Lists and mappings are copied, because the constructor may change its arguments.
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
    """Copy the lists, tuples, sets and dicts of a value at any depth; all other objects are shared."""
    if type(value) is dict:
        return {key: copied(item) for key, item in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(map(copied, value))
    return value


def call_with_copies(factory: Callable[..., T], *args: Any) -> T:
    """Call a factory; for a `functools.partial`, pass copies of its stored keyword arguments."""
    keywords = copied(factory.keywords) if isinstance(factory, partial) else {}
    return factory(*args, **keywords)


def json_value(value: Any) -> Any:
    """Convert a setting to JSON types; a tuple becomes a list.

    Raises:
        TypeError: If JSON cannot represent the value.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if isinstance(value, dict):
        if other := [key for key in value if type(key) is not str]:
            raise TypeError(f"expected strings as keys of a mapping, got {other[0]!r}")
        return {key: json_value(item) for key, item in value.items()}
    raise TypeError(f"JSON cannot represent {type(value).__name__}")


def described_value(value: Any) -> Any:
    """Convert a setting to JSON types, or to a text that is the same in every process."""
    try:
        return json_value(value)
    except TypeError:
        named = getattr(value, "__qualname__", None)
        return f"{value.__module__}.{named}" if named else re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def class_name(part: object) -> str:
    """Return the dotted name of the class of a part."""
    return f"{type(part).__module__}.{type(part).__qualname__}"


def is_own(part: object) -> bool:
    """Return whether the class of a part is user-defined, not part of this package."""
    return not is_in(type(part).__module__, (_PACKAGE,))

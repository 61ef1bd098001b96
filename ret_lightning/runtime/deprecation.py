"""Earlier names that are accepted, with a warning, until a stated version."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

UNTIL = "0.3"  # the version that refuses earlier names


def deprecation(earlier: str, current: str) -> str:
    """Return the deprecation message of an earlier name."""
    return f"{earlier} is deprecated and will be an error in version {UNTIL}; use {current}"


def renamed_names(package: str, names: Mapping[str, str], find: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a package's `__getattr__` that also finds public names of earlier versions, with a FutureWarning.

    Args:
        package: `__name__` of the package.
        names: mapping of earlier to current names.
        find: returns the object with a current name, or raises AttributeError.
    """

    def find_attribute(name: str) -> Any:
        if name not in names:
            return find(name)
        warnings.warn(deprecation(f"{package}.{name}", names[name]), FutureWarning, stacklevel=2)
        return find(names[name])

    return find_attribute


def find_in(namespace: Mapping[str, Any]) -> Callable[[str], Any]:
    """Return the `find` of `renamed_names` for a package that imports its names, given its `globals()`."""

    def find(name: str) -> Any:
        if name not in namespace:
            raise AttributeError(f"module {namespace['__name__']!r} has no attribute {name!r}")
        return namespace[name]

    return find


class RenamedAttribute:
    """A method or attribute under its earlier name; reading it issues a FutureWarning.

    Args:
        current: the current name.
    """

    def __init__(self, current: str) -> None:
        self.current = current

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type) -> Any:
        warnings.warn(deprecation(f"{owner.__name__}.{self.name}", self.current), FutureWarning, stacklevel=2)
        return getattr(owner if instance is None else instance, self.current)

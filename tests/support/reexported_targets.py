"""Names of other modules: re-exports, aliases, and one defined only at run time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.support import config_targets as other
from tests.support.config_targets import *  # noqa: F403
from tests.support.config_targets import Gate as Door  # noqa: F401
from tests.support.config_targets import Model

if TYPE_CHECKING:
    from tests.support.config_targets import Trainer as Lazy  # noqa: F401

Alias = other.Optimizer
Model = Model  # a name bound to itself must not cause an endless loop


def __getattr__(name: str) -> Any:
    if name == "Lazy":
        return other.Trainer
    raise AttributeError(name)

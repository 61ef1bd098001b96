"""Building what a config names. The only caller of Hydra's `instantiate`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from ret_lightning.config.checker.yaml_files import first_line
from ret_lightning.config.targets.allowed_targets import (
    allow_list,
    built_refusal,
    not_a_name,
    not_callable,
    target_refusal,
)
from ret_lightning.config.targets.locate import UnknownTarget, locate
from ret_lightning.config.targets.renamed_keys import update_keys
from ret_lightning.config.targets.target_aliases import update_targets
from ret_lightning.errors import ConfigError, UserError


def build(node: DictConfig | ListConfig | Mapping[str, Any] | None, *args: Any, **kwargs: Any) -> Any:
    """Build a node's `_target_`, after everything nested in it, from plain containers.

    Args:
        node: a node of a composed config, or a plain mapping. Of a mapping or list without a `_target_` what is built of its
            values, as a dict or list; None of None.
        args, kwargs: what the caller adds to the node's own keys. They are handed over as they are, neither copied nor
            put into a config, so a model's parameters stay the model's.

    Returns:
        The object, or with `_partial_: true` a `functools.partial` that makes it.

    Raises:
        ConfigError: one line with the node's key and target, where the target may not be built from a config, does not
            exist, or does not take what it is given. HYDRA_FULL_ERROR=1 shows what went wrong inside.
        UserError: as raised by what was built.
    """
    if node is None:
        return None
    if not isinstance(node, DictConfig | ListConfig):
        node = OmegaConf.create(node)
    update_targets(node._get_root())
    update_keys(node._get_root())
    key = str(node._get_full_key(None))
    target = node.get("_target_") if isinstance(node, DictConfig) else None
    if target is None and (args or kwargs):
        raise ValueError(f"{key} has no _target_ that could take further arguments")
    try:
        targets = _targets(node, key)
        names = [name for at, target in targets for name in _safe_names(f"{at}._target_".lstrip("."), target)]
        options = {"_convert_": "all", **allow_list(names)}
        if target is None:
            return instantiate(node, **options)
        # Made as a partial and called here: instantiate would copy the caller's arguments into a config.
        factory = instantiate(node, **options, _partial_=True)
        if node.get("_partial_", False):
            return partial(factory, *args, **kwargs) if args or kwargs else factory
        return factory(*args, **kwargs)
    except UserError:
        raise
    except Exception as error:
        raise _told(error, key, target) from error


def _targets(node: Any, key: str) -> list[tuple[str, Any]]:
    """Every `_target_` in a node, with the key of the node that it stands in; what an interpolation leads to as well."""
    found = [(key, node["_target_"])] if isinstance(node, DictConfig) and "_target_" in node else []
    for item in node if isinstance(node, DictConfig) else range(len(node)):
        if not OmegaConf.is_missing(node, item) and isinstance(node[item], DictConfig | ListConfig):
            found += _targets(node[item], f"{key}.{item}".lstrip("."))
    return found


def _safe_names(key: str, target: Any) -> tuple[str, str]:
    """The names of a target, as written and where it is defined; raises where a config may not build it."""
    if not isinstance(target, str):
        raise _at(key, not_a_name(target))
    if (reason := target_refusal(target)) is not None:
        raise _at(key, reason)
    try:
        found = locate(target)
    except UnknownTarget as error:
        raise ConfigError(
            f"{key}: cannot import {target}: {error.message}", code="target-import-failed", key=key, found=target
        ) from error
    if not callable(found):
        raise _at(key, not_callable(target))
    module = str(getattr(found, "__module__", None))
    if (reason := built_refusal(target, module, is_class=isinstance(found, type))) is not None:
        raise _at(key, reason)
    return target, f"{module}.{getattr(found, '__qualname__', '')}"


def _at(key: str, error: ConfigError) -> ConfigError:
    return ConfigError(f"{key}: {error.message}", code=error.code, **error.values, key=key)


def _told(error: Exception, key: str, target: str | None) -> UserError:
    """The user's error that is behind an exception, or else the exception as one line about the node."""
    chain: list[BaseException] = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    for cause in chain:
        if isinstance(cause, UserError):
            return cause
    cause = next((cause for cause in chain if not isinstance(cause, InstantiationException)), error)
    lines = [*str(error).splitlines(), *getattr(error, "__notes__", ())]  # Hydra 1.4 puts the key into a note
    inner = [line.removeprefix("full_key: ") for line in lines if line.startswith("full_key: ")]
    place = inner[0] if inner and inner[0] != key else f"{key} ({target})" if target else key
    reason = first_line(cause)
    if not isinstance(cause, InstantiationException):
        reason = f"{type(cause).__name__}: {reason}"
    return ConfigError(
        f"{place}: cannot be built: {reason}; HYDRA_FULL_ERROR=1 shows where",
        code="target-build-failed",
        key=inner[0] if inner else key,
        reason=reason,
    )

"""Construction of objects from config nodes. The only caller of Hydra's `instantiate`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from ret_lightning.config.checker.yaml_files import first_line
from ret_lightning.config.nodes import child_keys
from ret_lightning.config.targets.allowed_targets import (
    allow_list,
    check_target_name,
    check_target_origin,
    not_callable_error,
    target_type_error,
)
from ret_lightning.config.targets.locate import UnknownTarget, locate
from ret_lightning.config.targets.renamed_keys import update_keys
from ret_lightning.config.targets.target_aliases import update_targets
from ret_lightning.errors import ConfigError, UserError


def build(node: DictConfig | ListConfig | Mapping[str, Any] | None, *args: Any, **kwargs: Any) -> Any:
    """Build the `_target_` of a config node, after all targets nested in it.

    Containers are converted to dicts and lists.

    Args:
        node: a node of a composed config, or a plain mapping. The values of a mapping or list without a `_target_` are
            built one by one.
        args: positional arguments for the target. They are passed as they are, without a copy.
        kwargs: keyword arguments for the target, added to the keys of the node. They are passed as they are.

    Returns:
        The object; with `_partial_: true` a `functools.partial` of the target; a dict or list for a node without a
        `_target_`; None for None.

    Raises:
        ConfigError: if the target is not allowed or does not exist, or if its constructor fails. The message names the key
            and the target; HYDRA_FULL_ERROR=1 prints the traceback.
        UserError: raised by the target.
    """
    if node is None:
        return None
    if not isinstance(node, DictConfig | ListConfig):
        node = OmegaConf.create(cast("dict[str, Any]", node))
    root: Any = node._get_root()
    update_targets(root)
    update_keys(root)
    key = str(node._get_full_key(None))
    target = node.get("_target_") if isinstance(node, DictConfig) else None
    if target is None and (args or kwargs):
        raise ValueError(f"{key} has no _target_ that could take further arguments")
    try:
        targets = _find_targets(node, key)
        names = [name for path, target in targets for name in _allowed_names(f"{path}._target_".lstrip("."), target)]
        options = {"_convert_": "all", **allow_list(names)}
        if target is None:
            return instantiate(node, **options)
        # Built as a partial because instantiate would copy the arguments of the caller into a config.
        factory = instantiate(node, **options, _partial_=True)
        if isinstance(node, DictConfig) and node.get("_partial_", False):
            return partial(factory, *args, **kwargs) if args or kwargs else factory
        return factory(*args, **kwargs)
    except UserError:
        raise
    except Exception as error:
        raise _to_user_error(error, key, target) from error


def _find_targets(node: Any, key: str) -> list[tuple[str, Any]]:
    """Return every `_target_` in a node with the key of its node, following interpolations."""
    found = [(key, node["_target_"])] if isinstance(node, DictConfig) and "_target_" in node else []
    for item in child_keys(node):
        if not OmegaConf.is_missing(node, item) and isinstance(node[item], DictConfig | ListConfig):
            found += _find_targets(node[item], f"{key}.{item}".lstrip("."))
    return found


def _allowed_names(key: str, target: Any) -> tuple[str, str]:
    """Return the written and the defining name of a target; raise ConfigError if it is not allowed."""
    if not isinstance(target, str):
        raise _with_key(key, target_type_error(target))
    if (reason := check_target_name(target)) is not None:
        raise _with_key(key, reason)
    try:
        found = locate(target)
    except UnknownTarget as error:
        raise ConfigError(
            f"{key}: import of {target} failed: {error.message}", code="target-import-failed", key=key, found=target
        ) from error
    if not callable(found):
        raise _with_key(key, not_callable_error(target))
    module = str(getattr(found, "__module__", None))
    if (reason := check_target_origin(target, module, is_class=isinstance(found, type))) is not None:
        raise _with_key(key, reason)
    return target, f"{module}.{getattr(found, '__qualname__', '')}"


def _with_key(key: str, error: ConfigError) -> ConfigError:
    return ConfigError(f"{key}: {error.message}", code=error.code, **error.values, key=key)


def _to_user_error(error: Exception, key: str, target: str | None) -> UserError:
    """Return the UserError that caused an exception, or a ConfigError with the exception's first line."""
    chain: list[BaseException] = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    for cause in chain:
        if isinstance(cause, UserError):
            return cause
    cause = next((cause for cause in chain if not isinstance(cause, InstantiationException)), error)
    lines = [*str(error).splitlines(), *getattr(error, "__notes__", ())]  # Hydra 1.4 puts the key into a note
    inner = [line.removeprefix("full_key: ") for line in lines if line.startswith("full_key: ")]
    location = inner[0] if inner and inner[0] != key else f"{key} ({target})" if target else key
    reason = first_line(cause)
    if not isinstance(cause, InstantiationException):
        reason = f"{type(cause).__name__}: {reason}"
    return ConfigError(
        f"{location}: cannot be built: {reason}; HYDRA_FULL_ERROR=1 prints the traceback",
        code="target-build-failed",
        key=inner[0] if inner else key,
        reason=reason,
    )

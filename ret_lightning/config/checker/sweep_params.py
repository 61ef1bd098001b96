"""Earlier option names in the parameters of a sweeper, `hydra.sweeper.params`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig

from ret_lightning.config.checker.overrides import ParsedOverride, expand_sweeps, parse
from ret_lightning.config.targets.renamed_keys import current_override, is_earlier

# Composes the config of a job from overrides without sweeps; None if composition fails.
Compose = Callable[[list[ParsedOverride]], DictConfig | None]


def find_renamed_params(
    params: Mapping[str, Any], overrides: Sequence[str], loader: ConfigLoader, compose: Compose
) -> dict[str, str]:
    """Return the current name of each parameter with an earlier name, `retrieval.cells` -> `retrieval.nlist`.

    The current name of a key depends on the `_target_` of its node, so the config of the first job is composed without the
    earlier keys.

    Args:
        params: `hydra.sweeper.params`.
        overrides: overrides of the command line, as typed.
        loader: Hydra's config loader, for sweeps over a glob.
        compose: composes the config of the first job.
    """
    lines = {str(key): f"{key}={value}" for key, value in params.items()}
    earlier = {key: line for key, line in lines.items() if is_earlier(line)}
    if not earlier:
        return {}
    others = [*(line for key, line in lines.items() if key not in earlier), *overrides]
    parsed, _ = parse(others, others)
    for override in parsed:
        override.config_loader = loader
    config = compose(next(expand_sweeps(parsed)))
    current = {key: current_override(line, config).partition("=")[0] for key, line in earlier.items()}
    return {key: new for key, new in current.items() if new != key}


def rename_params(params: Mapping[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    """Return parameters with current names. If both names of an option are set, the current name takes precedence."""
    return {
        renamed.get(str(key), str(key)): value for key, value in params.items() if renamed.get(str(key)) not in params
    }

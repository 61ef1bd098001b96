"""The entry point of a DDP rank that the first rank starts.

    python -m ret_lightning.distributed.rank_process MODULE:FUNCTION FOLDER/config.yaml [OPTION ...]

It calls the function with the config and with each option set to true.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from ret_lightning.errors import UserError
from ret_lightning.runtime.child_process import exit_with_parent
from ret_lightning.runtime.console import quiet_libraries

PARENT_VARIABLE = "RET_LIGHTNING_FIRST_RANK"  # environment variable with the id of the process that starts the ranks


def rank_command(function: Callable[..., Any], config_file: str | Path, options: Sequence[str] = ()) -> list[str]:
    """Return the command line of a rank.

    Args:
        function: Function that the rank runs; importable by its module and name.
        config_file: Path of a YAML file, whose content is the first argument of the function.
        options: Names of the keyword arguments to set to true.
    """
    target = f"{function.__module__}:{function.__qualname__}"
    return [sys.executable, "-m", __spec__.name, target, str(config_file), *options]


def main() -> None:
    """Run the function named on the command line as the rank given by the environment."""
    from omegaconf import OmegaConf  # imported here so that DDP from Python works without Hydra

    target, file, *options = sys.argv[1:]
    module, name = target.split(":")
    # Without a collective, a rank does not detect that the first rank was killed, and would keep running next to the
    # ranks of a restarted run.
    exit_with_parent(int(os.environ[PARENT_VARIABLE]))
    try:
        with quiet_libraries():
            getattr(import_module(module), name)(OmegaConf.load(file), **dict.fromkeys(options, True))
    except UserError as error:
        # The first rank reports the same, unless only this one failed.
        print(f"ret-{name}: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()

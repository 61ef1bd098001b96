"""The command line of a command: Hydra's flags, and overrides with quotes where its grammar needs them."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Collection
from typing import NoReturn

import hydra
from hydra.core.override_parser.types import Quote, QuotedString

from ret_lightning.config.home_folder import expand_override
from ret_lightning.errors import ConfigError

_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")

# File names that the grammar takes in quotes only: of sweeps, `runs/gate+seed/gate=lstm+seed=1`, and in a home folder, `~/x`.
_NAMES_IN_QUOTES = re.compile(r"(?=.*[=~])[\w./+=@~, -]+")


def read_arguments(verbatim: Collection[str]) -> argparse.Namespace:
    """Read `sys.argv`, in which overrides are quoted in place, since Hydra reads it again for some flags.

    Args:
        verbatim: keys whose values are taken as they are on the command line.

    Raises:
        ConfigError: the flags are wrong, or do not go together.
    """
    arguments = _parser().parse_args()
    asked = [arguments.run, arguments.multirun, arguments.cfg, arguments.info, arguments.shell_completion]
    if sum(map(bool, asked)) > 1:
        _refuse("only one of --run, --multirun, --cfg, --info and --shell-completion can be given")
    if arguments.resolve and not arguments.cfg:
        _refuse("--resolve goes with --cfg only")
    if arguments.experimental_rerun:
        raise ConfigError(
            "--experimental-rerun would read a pickle; give the run's own overrides instead", code="rerun-unsupported"
        )
    quoted = {
        override: quote_override(expand_override(override, verbatim), verbatim) for override in arguments.overrides
    }
    arguments.overrides = list(map(quoted.get, arguments.overrides))
    sys.argv[1:] = [quoted.get(argument, argument) for argument in sys.argv[1:]]
    return arguments


def quote_override(override: str, verbatim: Collection[str]) -> str:
    """An override with quotes where Hydra's grammar would stumble over what is meant as plain text."""
    key, equals, value = override.partition("=")
    if not equals or value == "null":
        return override
    if key in verbatim:
        # A dollar that begins an interpolation is escaped for OmegaConf, with the backslashes before it.
        value = re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", value)
        return f"{key}={QuotedString(value, Quote.single).with_quotes()}"
    if _NAMES_IN_QUOTES.fullmatch(value):
        return f"{key}=" + ",".join(f"'{name}'" if set(name) & {*"=~"} else name for name in value.split(","))
    return override


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        _refuse(message)


def _refuse(message: str) -> NoReturn:
    raise ConfigError(
        f"{message}; flags come before or after all key=value arguments, --hydra-help lists them",
        code="command-line-flags",
    )


def _parser() -> argparse.ArgumentParser:
    """A parser of the flags that Hydra has; `--hydra-help` describes them."""
    parser = _Parser(add_help=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--version", action="version", version=f"Hydra {hydra.__version__}")
    parser.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
    parser.add_argument("--info", "-i", const="all", nargs="?", choices=_INFO)
    switches = ["--help -h", "--hydra-help", "--resolve", "--run -r", "--multirun -m", "--shell-completion -sc"]
    for names in switches:
        parser.add_argument(*names.split(), action="store_true")
    for names in ("--package -p", "--config-path -cp", "--config-name -cn", "--config-dir -cd", "--experimental-rerun"):
        parser.add_argument(*names.split())
    return parser

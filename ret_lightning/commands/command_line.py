"""Parsing of the command line: Hydra's flags, and overrides quoted where Hydra's grammar requires it."""

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

# File names that the grammar accepts only in quotes: of sweeps, `runs/gate+seed/gate=lstm+seed=1`, and `~/x`.
_NAMES_IN_QUOTES = re.compile(r"(?=.*[=~])[\w./+=@~, -]+")


def read_arguments(verbatim: Collection[str]) -> argparse.Namespace:
    """Parse `sys.argv`, and quote its overrides in place because Hydra parses it again for some flags.

    Args:
        verbatim: keys whose values are strings and not parsed.

    Returns:
        The flags, and the quoted overrides as `overrides`.

    Raises:
        ConfigError: if a flag is invalid, or flags exclude each other.
    """
    arguments = _parser().parse_args()
    exclusive = [arguments.run, arguments.multirun, arguments.cfg, arguments.info, arguments.shell_completion]
    if sum(map(bool, exclusive)) > 1:
        _refuse("expected at most one of --run, --multirun, --cfg, --info and --shell-completion")
    if arguments.resolve and not arguments.cfg:
        _refuse("--resolve requires --cfg")
    if arguments.experimental_rerun:
        raise ConfigError(
            "--experimental-rerun is not supported because it loads a pickle; use the overrides of the run",
            code="rerun-unsupported",
        )
    quoted = {
        override: quote_override(expand_override(override, verbatim), verbatim) for override in arguments.overrides
    }
    arguments.overrides = list(map(quoted.get, arguments.overrides))
    sys.argv[1:] = [quoted.get(argument, argument) for argument in sys.argv[1:]]
    return arguments


def quote_override(override: str, verbatim: Collection[str]) -> str:
    """Quote the value of an override if Hydra's grammar would not read it as the intended string.

    Args:
        override: the override as typed.
        verbatim: keys whose values are strings and not parsed.
    """
    key, equals, value = override.partition("=")
    if not equals or value == "null":
        return override
    if key in verbatim:
        # For OmegaConf, escape the start of an interpolation and the backslashes before it.
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
        f"{message}; put flags before or after all key=value arguments; --hydra-help lists them",
        code="command-line-flags",
    )


def _parser() -> argparse.ArgumentParser:
    """Return a parser of Hydra's flags."""
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

"""Print a table of the available backbones: `python -m ret_lightning.models.backbones [--config-dir DIR]`."""

from __future__ import annotations

import argparse
import sys

from ret_lightning.errors import UserError
from ret_lightning.models.backbones.registry import list_backbones, table


def main() -> int:
    """Print the table and return the exit code."""
    parser = argparse.ArgumentParser("python -m ret_lightning.models.backbones", description="List the backbones.")
    parser.add_argument("--config-dir", action="append", default=[], metavar="DIR", help="folder of additional configs")
    try:
        print(table(list_backbones(parser.parse_args().config_dir)))
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

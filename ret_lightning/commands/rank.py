"""What a DDP rank beside the first one runs: `python -m ret_lightning.commands.rank COMMAND FOLDER/config.yaml [resume]`.

COMMAND is `train` or `evaluate`.
"""

from __future__ import annotations

import os
import sys

from omegaconf import OmegaConf

from ret_lightning.errors import UserError
from ret_lightning.runtime.child_process import end_with


def main() -> None:
    """Runs the job of a config file as the rank that the environment names."""
    command, file, *options = sys.argv[1:]
    config = OmegaConf.load(file)
    try:
        if command == "evaluate":
            from ret_lightning.distributed.ddp import PARENT_VARIABLE
            from ret_lightning.runs.evaluate import evaluate

            # While rows are encoded no rank waits for another, so this one would not notice that the first one was killed, and
            # would go on beside those that the same command, given again, has started.
            end_with(int(os.environ[PARENT_VARIABLE]))
            evaluate(config)
        else:
            from ret_lightning.runs.train import train

            train(config, resume=options == ["resume"])
    except UserError as error:
        # The first rank tells the same, unless it is only this one that stumbled.
        print(f"ret-{command}: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()

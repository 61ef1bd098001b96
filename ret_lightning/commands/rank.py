"""What a DDP rank beside the first one runs: `python -m ret_lightning.commands.rank COMMAND FOLDER/config.yaml [resume]`.

COMMAND is `train` or `evaluate`.
"""

from __future__ import annotations

import sys

from omegaconf import OmegaConf

from ret_lightning.errors import UserError


def main() -> None:
    """Runs the job of a config file as the rank that the environment names."""
    command, file, *options = sys.argv[1:]
    config = OmegaConf.load(file)
    try:
        if command == "evaluate":
            from ret_lightning.training.standalone import evaluate

            evaluate(config)
        else:
            from ret_lightning.training.run import train

            train(config, resume=options == ["resume"])
    except UserError as error:
        # The first rank tells the same, unless it is only this one that stumbled.
        message = str(error).strip().splitlines()[-1]
        print(
            f"ret-{command}: {message.removeprefix(f'{type(error).__module__}.{type(error).__qualname__}: ')}",
            file=sys.stderr,
        )
        sys.exit(1)


if __name__ == "__main__":
    main()

"""A small command for the tests of the application, run as a script with its config folder in CONF."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from omegaconf import DictConfig

from ret_lightning.commands.application import run
from ret_lightning.config.build import build
from ret_lightning.errors import DataError, Stopped
from tests.support.config_targets import Schema

# An error in a worker of a data loader, as reported by PyTorch.
IN_WORKER = """Caught DataError in DataLoader worker process 0.
Original Traceback (most recent call last):
  File "loader.py", line 3, in fetch
    raise DataError(line)
ret_lightning.errors.DataError: rows.jsonl:4: no question
"""


def task(config: DictConfig) -> None:
    """Build the gate, then raise the error that belongs to the seed."""
    print(f"task seed={config.seed} gate={type(build(config.model).gate).__name__}")
    if config.seed == 2:
        raise DataError("rows.jsonl:3: no question")
    if config.seed == 3:
        raise ZeroDivisionError("a bug")
    if config.seed == 4:
        raise KeyboardInterrupt
    if config.seed == 5:
        raise DataError(IN_WORKER)
    if config.seed == 6:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)
    if config.seed == 7:
        Path("/no/such/folder/file").touch()
    if config.seed == 9:
        raise Stopped("stopped by SIGTERM at step 3", 15)
    Path(config.output_dir, f"seed-{config.seed}").touch()


if __name__ == "__main__":
    run(task, config_name="train", schema=Schema, prog="ret-lab", config_path=os.environ["CONF"])

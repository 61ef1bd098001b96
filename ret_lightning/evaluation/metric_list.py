"""The list of metrics that a Trainer prints after a test."""

from __future__ import annotations

from collections.abc import Mapping

from lightning import Trainer
from rich.table import Table

from ret_lightning.runtime.console import console, printing


def print_once(trainer: Trainer) -> None:
    """Print the metrics of a test or a validation, in place of Lightning's list, which repeats each for every loader.

    Nothing is printed with `verbose=False`. To be called from `on_test_end` or `on_validation_end`.
    """
    loop = trainer.test_loop if trainer.testing else trainer.validate_loop
    if trainer.state.fn == "fit" or not loop.verbose:  # fit prints no list
        return
    loop.verbose = False  # set by each call of trainer.test and trainer.validate
    if trainer.is_global_zero:
        _print({name: float(value) for name, value in trainer.callback_metrics.items() if value.numel() == 1})


def _print(metrics: Mapping[str, float]) -> None:
    table = Table("metric", "value")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.6g}")
    shown = console()
    # A narrow terminal wraps lines then, and cuts no name.
    shown.width = max(shown.width, 2 * max(map(len, metrics), default=0))
    with printing():
        shown.print(table)

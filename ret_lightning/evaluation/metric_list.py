"""Print the metrics of a Trainer after a test or validation."""

from __future__ import annotations

from collections.abc import Mapping

from lightning import Trainer
from rich.table import Table

from ret_lightning.runtime.console import console, printing


def print_metrics(trainer: Trainer) -> None:
    """Print each metric of a test or validation once, in place of Lightning's list, which repeats it for every loader.

    Prints nothing with `verbose=False` or during `fit`. Call it from `on_test_end` or `on_validation_end`.

    Args:
        trainer: the Trainer, after a test or validation.
    """
    loop = trainer.test_loop if trainer.testing else trainer.validate_loop
    if trainer.state.fn == "fit" or not loop.verbose:  # fit prints no metrics
        return
    loop.verbose = False  # disables Lightning's list; each call of the Trainer sets it again
    if trainer.is_global_zero:
        _print_table({name: float(value) for name, value in trainer.callback_metrics.items() if value.numel() == 1})


def _print_table(metrics: Mapping[str, float]) -> None:
    table = Table("metric", "value")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.6g}")
    output = console()
    # A narrow terminal then wraps lines and does not truncate names.
    output.width = max(output.width, 2 * max(map(len, metrics), default=0))
    with printing():
        output.print(table)

"""What a sweep would do, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from ret_lightning.training.planning import Plan, told


def show(plans: Sequence[Plan]) -> None:
    """Prints one row a job: what varies, what became of it before, and what it would take."""
    table = Table(title=told(plans))
    print(plans, table, Console)

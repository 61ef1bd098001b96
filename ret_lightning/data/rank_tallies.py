"""Reduction of bad-row counts over all ranks."""

from __future__ import annotations

from typing import Any

import torch

from ret_lightning.data.bad_rows import Tally
from ret_lightning.distributed.collectives import world_size


def reduce_tally(tally: Tally, device: torch.device) -> Tally:
    """Add up the tallies of all ranks. A collective: every rank must call it.

    Args:
        tally: counts of this rank.
        device: device of the collectives.

    Returns:
        The counts of all ranks. If no row is bad, only the number of rows is filled in.
    """
    if world_size() == 1:
        return tally
    counts = torch.tensor([tally.rows, tally.bad], device=device)
    torch.distributed.all_reduce(counts)
    rows, bad = counts.tolist()
    if bad == 0:  # the usual case, which exchanges two numbers only
        return Tally(rows)
    parts: list[Any] = [None] * world_size()
    # Messages are built on the rank that read the rows: other machines may store the file in another folder.
    first = {kind: [row._replace(text=row.message) for row in rows] for kind, rows in tally.first.items()}
    torch.distributed.all_gather_object(parts, Tally(tally.rows, tally.kinds, first))
    total = Tally()
    for part in parts:
        total.update(part)
    return total

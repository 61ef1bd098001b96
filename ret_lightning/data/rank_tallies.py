"""Bad rows counted over all ranks."""

from __future__ import annotations

from typing import Any

import torch

from ret_lightning.data.bad_rows import Tally
from ret_lightning.distributed.collectives import world_size


def tally_over_ranks(tally: Tally, device: torch.device) -> Tally:
    """Add up the tallies of all ranks, which call this together; `device` is the one that the collectives run on."""
    if world_size() == 1:
        return tally
    counts = torch.tensor([tally.rows, tally.bad], device=device)
    torch.distributed.all_reduce(counts)
    rows, bad = counts.tolist()
    if bad == 0:  # nearly always, so that only two numbers are exchanged
        return Tally(rows)
    parts: list[Any] = [None] * world_size()
    # Messages are made where the rows were read: on another machine the file may stand elsewhere.
    told = {kind: [row._replace(text=row.message) for row in rows] for kind, rows in tally.first.items()}
    torch.distributed.all_gather_object(parts, Tally(tally.rows, tally.kinds, told))
    whole = Tally()
    for part in parts:
        whole.update(part)
    return whole

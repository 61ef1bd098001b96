"""Run a function on several ranks of a gloo group, each a fork of this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def on_ranks(function: Callable[[int], Any], count: int, folder: Path) -> list[Any]:
    """Call a function of the rank on each of `count` ranks and return the results; `folder` must be empty."""
    mp.start_processes(_run, (function, count, str(folder)), nprocs=count, start_method="fork")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(count)]


def _run(rank: int, function: Callable[[int], Any], count: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=count)
    torch.save(function(rank), f"{folder}/{rank}.pt")
    dist.barrier()  # no rank exits while another one is still writing
    dist.destroy_process_group()

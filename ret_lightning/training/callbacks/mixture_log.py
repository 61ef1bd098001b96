"""Log the shares of the subsets among the training rows."""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer

from ret_lightning.data.batch import TrainingBatch
from ret_lightning.distributed.collectives import rank, world_size


class MixtureLog(Callback):
    """Logs `mixture/<subset>` every `log_every_n_steps`.

    The value is the share of the subset among the training rows of all ranks since the last log. The shares of one log
    sum to 1. A subset that was seen earlier, but not since the last log, is logged as 0.
    """

    def __init__(self) -> None:
        self._rows: Counter[str] = Counter()
        self._seen: set[str] = set()
        self._logged = 0  # step of the last log

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: TrainingBatch, batch_idx: int
    ) -> None:
        """Count the rows of the batch; log the shares every `log_every_n_steps`."""
        self._rows.update(batch.subsets)
        if trainer.global_step % cast(Any, trainer).log_every_n_steps or trainer.global_step == self._logged:
            return
        self._logged = trainer.global_step
        counts = _sum_over_ranks(self._rows)
        self._seen |= counts.keys()
        total = max(counts.total(), 1)  # all rows of these steps may have been skipped
        # The counts are already summed over the ranks: no reduction is needed.
        shares = {f"mixture/{name}": counts[name] / total for name in sorted(self._seen)}
        pl_module.log_dict(shares, rank_zero_only=True, batch_size=max(len(batch), 1))
        self._rows.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the counts, summed over all ranks, since a run may be resumed with another number of ranks.

        All ranks call this together.
        """
        return {"rows": dict(_sum_over_ranks(self._rows)), "seen": sorted(self._seen), "logged": self._logged}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the summed counts on rank 0; the other ranks start from zero."""
        self._rows = Counter(state_dict["rows"] if rank() == 0 else {})
        self._seen = set(state_dict["seen"])
        self._logged = state_dict["logged"]


def _sum_over_ranks(rows: Counter[str]) -> Counter[str]:
    if world_size() == 1:
        return Counter(rows)
    parts: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(parts, rows)
    return sum(parts, Counter())

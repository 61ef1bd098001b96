"""Which subsets the rows that training saw were of."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from ret_lightning.data.batch import TrainingBatch
from ret_lightning.distributed.collectives import rank, world_size


class MixtureLog(Callback):
    """Logs `mixture/<subset>`, the share of the rows since the last time over all ranks, every `log_every_n_steps`.

    The shares of one logging sum to 1; a subset that was seen before and did not come again is logged as 0.
    """

    def __init__(self) -> None:
        self._rows: Counter[str] = Counter()
        self._seen: set[str] = set()
        self._logged = 0  # the step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: TrainingBatch, batch_idx: int
    ) -> None:
        """Counts the rows of the batch; logs when it is time."""
        self._rows.update(batch.subsets)
        if trainer.global_step % trainer.log_every_n_steps or trainer.global_step == self._logged:
            return
        self._logged = trainer.global_step
        counts = _over_ranks(self._rows)
        self._seen |= counts.keys()
        total = max(counts.total(), 1)  # every row of these steps may have been bad
        # All ranks hold the same numbers, so that nothing is left to be reduced.
        shares = {f"mixture/{name}": counts[name] / total for name in sorted(self._seen)}
        pl_module.log_dict(shares, rank_zero_only=True, batch_size=max(len(batch), 1))
        self._rows.clear()

    def state_dict(self) -> dict[str, Any]:
        """Of all ranks, so called on all together: a resumed run may have another number of them."""
        return {"rows": dict(_over_ranks(self._rows)), "seen": sorted(self._seen), "logged": self._logged}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What had been counted goes to the first rank, and to the sum over ranks with what it counts."""
        self._rows = Counter(state_dict["rows"] if rank() == 0 else {})
        self._seen = set(state_dict["seen"])
        self._logged = state_dict["logged"]


def _over_ranks(rows: Counter[str]) -> Counter[str]:
    if world_size() == 1:
        return Counter(rows)
    parts: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(parts, rows)
    return sum(parts, Counter())

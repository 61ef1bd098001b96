"""Batches of training and evaluation, and labels that identify passages across ranks.

B is the number of rows, P the number of passages, and m the largest number of positive ids of a query.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ret_lightning.data.bad_rows import BadRow
from ret_lightning.data.types import Side
from ret_lightning.inputs import EncoderInput
from ret_lightning.inputs.truncated_texts import TextCount


@dataclass(frozen=True)
class TrainingBatch:
    """B query-passage pairs. B is 0 if all rows of a rank were skipped.

    Attributes:
        queries: the B queries.
        passages: P >= B passages: the positive of each query, in the order of the queries, followed by the negatives.
        labels: (B, m) int64, the `label` of each positive id of each query, beginning with the positive in `passages`, padded
            with `losses.PADDING`; m >= 1.
        passage_labels: (P,) int64, the `label` of each passage.
        passage_rows: (P,) int64 in [0, B), the row that each passage belongs to.
        subsets: B subset names, `unknown` for a row without a subset.
        extra: columns of the rows for the loss, see `losses.EncodedBatch`.
        bad_rows: the rows that were skipped.
        texts: number of texts of both sides, and of truncated texts.
    """

    queries: EncoderInput
    passages: EncoderInput
    labels: Tensor
    passage_labels: Tensor
    passage_rows: Tensor
    subsets: tuple[str, ...]
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    bad_rows: tuple[BadRow, ...] = ()
    texts: TextCount = field(default_factory=TextCount)

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> TrainingBatch:
        """Return the batch on another device."""
        return self._map_tensors(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> TrainingBatch:
        """Return the batch in page-locked memory."""
        return self._map_tensors(lambda x: x.pin_memory())

    def _map_tensors(self, move: Callable[[Any], Any]) -> TrainingBatch:
        tensors = ("queries", "passages", "labels", "passage_labels", "passage_rows")
        moved = {name: move(getattr(self, name)) for name in tensors}
        return replace(self, **moved, extra={name: move(column) for name, column in self.extra.items()})


@dataclass(frozen=True)
class EvaluationBatch:
    """B queries or passages of a subset, to be encoded.

    Attributes:
        inputs: the B rows.
        rows: (B,) int64, positions of the rows in the queries or the candidate pool of the subset.
        subset: name of the subset; may be empty.
        side: `query` or `passage`; selects the tower.
        bad_images: rows that are encoded without their image, because it cannot be read.
        imageless: positions of these rows, as in `rows`.
        texts: number of texts, and of truncated texts.
        is_repeated: whether the rows belong to another rank and are repeated for a rank without rows, see `fill_idle_rank`.
    """

    inputs: EncoderInput
    rows: Tensor
    subset: str
    side: Side
    bad_images: tuple[BadRow, ...] = ()
    imageless: tuple[int, ...] = ()
    texts: TextCount = field(default_factory=TextCount)
    is_repeated: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> EvaluationBatch:
        """Return the batch on another device."""
        rows = self.rows.to(device, non_blocking=non_blocking)
        return replace(self, inputs=self.inputs.to(device, non_blocking), rows=rows)

    def pin_memory(self) -> EvaluationBatch:
        """Return the batch in page-locked memory."""
        return replace(self, inputs=self.inputs.pin_memory(), rows=self.rows.pin_memory())


def label(subset: str, passage_id: str) -> int:
    """Return the label of a passage; two labels are equal if both the subset and the id are equal.

    The label is a 63-bit hash. Among 10,000 labels, the probability of a collision is about 5e-12.

    Args:
        subset: name of the subset; empty for all subsets if they share their passage ids.
        passage_id: id of the passage.
    """
    # The length makes the concatenation unique.
    return hash_text(f"{len(subset)}:{subset}{passage_id}")


def hash_text(text: str) -> int:
    """Return a 63-bit hash of a text, which unlike `hash` is the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1

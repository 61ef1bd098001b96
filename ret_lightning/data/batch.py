"""The batches of training and evaluation, and the labels by which ranks compare passages."""

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
    """B query-passage pairs; B is 0 where all rows of a rank were left out.

    Attributes:
        queries: B rows.
        passages: P >= B rows, the positive of each query, in their order, and then the negatives that rows name.
        labels: (B, m) int64, the `label` of each passage id of each query, its positive's first, padded with
            `losses.PADDING`; m is the largest number of ids of a query of this batch, at least 1.
        passage_labels: (P,) int64, the `label` of each passage.
        passage_rows: (P,) int64, which of the B rows names each passage.
        subsets: the B subsets' names, `unknown` for a row without one.
        extra: columns of the rows for the loss, see `losses.EncodedBatch`.
        bad_rows: the rows that were left out of the batch.
        texts: of both sides, and how many of them the tokenizer cut.
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
        """The same batch on another device."""
        return self._mapped(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> TrainingBatch:
        """The same batch in page-locked memory."""
        return self._mapped(lambda x: x.pin_memory())

    def _mapped(self, move: Callable[[Any], Any]) -> TrainingBatch:
        tensors = ("queries", "passages", "labels", "passage_labels", "passage_rows")
        moved = {name: move(getattr(self, name)) for name in tensors}
        return replace(self, **moved, extra={name: move(column) for name, column in self.extra.items()})


@dataclass(frozen=True)
class EvaluationBatch:
    """B rows of one side of a subset to encode.

    Attributes:
        inputs: B rows.
        rows: (B,) int64, their positions in the subset's queries or pool.
        subset: name; empty where there is none.
        side: `query` or `passage`, which decides the tower.
        bad_images: rows that go without their image, since it cannot be read.
        imageless: the positions of these, as in `rows`.
        texts: of the rows, and how many of them the tokenizer cut.
        is_repeated: whether the rows are another rank's, repeated for a rank without any (see `fill_idle_rank`).
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
        """The same batch on another device."""
        rows = self.rows.to(device, non_blocking=non_blocking)
        return replace(self, inputs=self.inputs.to(device, non_blocking), rows=rows)

    def pin_memory(self) -> EvaluationBatch:
        """The same batch in page-locked memory."""
        return replace(self, inputs=self.inputs.pin_memory(), rows=self.rows.pin_memory())


def label(subset: str, passage_id: str) -> int:
    """Return the label of a passage: equal where both subset and id are equal.

    Where the subsets share their passage ids, `subset` is empty for all of them.

    Of the 10,000 labels of a large batch two collide with a probability of about 5e-12.
    """
    # With the length in front, no two pairs make the same text.
    return text_hash(f"{len(subset)}:{subset}{passage_id}")


def text_hash(text: str) -> int:
    """Return a text as a 63-bit number, the same in every process (unlike `hash`)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1

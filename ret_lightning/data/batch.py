"""The batches of training and evaluation, and the labels by which ranks compare passages."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ret_lightning.data.bad_rows import BadRow
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
        subsets: the B subsets' names, `unknown` for a row without one.
        bad_rows: the rows that were left out of the batch.
        texts: of both sides, and how many of them the tokenizer cut.
    """

    queries: EncoderInput
    passages: EncoderInput
    labels: Tensor
    passage_labels: Tensor
    subsets: tuple[str, ...]
    bad_rows: tuple[BadRow, ...] = ()
    texts: TextCount = field(default_factory=TextCount)

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> TrainingBatch:
        """The same batch on another device."""
        return replace(
            self,
            queries=self.queries.to(device, non_blocking),
            passages=self.passages.to(device, non_blocking),
            labels=self.labels.to(device, non_blocking=non_blocking),
            passage_labels=self.passage_labels.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> TrainingBatch:
        """The same batch in page-locked memory."""
        return replace(
            self,
            queries=self.queries.pin_memory(),
            passages=self.passages.pin_memory(),
            labels=self.labels.pin_memory(),
            passage_labels=self.passage_labels.pin_memory(),
        )


@dataclass(frozen=True)
class EvaluationBatch:
    """B rows of one side to encode.

    Attributes:
        inputs: B rows.
        rows: (B,) int64, their positions in the subset's queries or pool.
        bad_images: rows that go without their image, since it cannot be read.
        imageless: the positions of these, as in `rows`.
        texts: of the rows, and how many of them the tokenizer cut.
    """

    inputs: EncoderInput
    rows: Tensor
    bad_images: tuple[BadRow, ...] = ()
    imageless: tuple[int, ...] = ()
    texts: TextCount = field(default_factory=TextCount)

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

"""The batch types: what a step of training or evaluation takes, and the labels by which ranks tell passages apart."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ret_lightning.data.bad_rows import BadRow
from ret_lightning.inputs import EncoderInput


@dataclass(frozen=True)
class TrainingBatch:
    """B query-passage pairs; B is 0 where all rows of a rank were left out.

    Attributes:
        queries: B rows.
        passages: P >= B rows, the positive of each query, in their order, and then the negatives that rows name.
        labels: (B,) int64, equal for equal passage ids.
        passage_labels: (P,) likewise of the passages.
        subsets: the B subsets' names, `unknown` where a row does not tell.
        bad_rows: what was left out of the batch.
    """

    queries: EncoderInput
    passages: EncoderInput
    labels: Tensor
    passage_labels: Tensor
    subsets: tuple[str, ...]
    bad_rows: tuple[BadRow, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> TrainingBatch:
        """The same batch on another device."""
        return TrainingBatch(
            self.queries.to(device, non_blocking),
            self.passages.to(device, non_blocking),
            self.labels.to(device, non_blocking=non_blocking),
            self.passage_labels.to(device, non_blocking=non_blocking),
            self.subsets,
            self.bad_rows,
        )

    def pin_memory(self) -> TrainingBatch:
        """The same batch in page-locked memory."""
        return TrainingBatch(
            self.queries.pin_memory(),
            self.passages.pin_memory(),
            self.labels.pin_memory(),
            self.passage_labels.pin_memory(),
            self.subsets,
            self.bad_rows,
        )


@dataclass(frozen=True)
class EvaluationBatch:
    """B rows of one side to encode.

    Attributes:
        inputs: B rows.
        rows: (B,) int64, their positions in the subset's queries or pool.
        bad_images: rows that go without their image, since it cannot be read.
        imageless: the positions of these, as in `rows`.
    """

    inputs: EncoderInput
    rows: Tensor
    bad_images: tuple[BadRow, ...] = ()
    imageless: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> EvaluationBatch:
        """The same batch on another device."""
        rows = self.rows.to(device, non_blocking=non_blocking)
        return replace(self, inputs=self.inputs.to(device, non_blocking), rows=rows)

    def pin_memory(self) -> EvaluationBatch:
        """The same batch in page-locked memory."""
        return replace(self, inputs=self.inputs.pin_memory(), rows=self.rows.pin_memory())


def label(passage_id: str) -> int:
    """A passage id as a 63-bit number, the same in every process (unlike `hash`), so that ranks can compare ids.

    Two of the 10,000 ids of a large batch collide with a probability of about 5e-12.
    """
    return int.from_bytes(hashlib.blake2b(passage_id.encode(), digest_size=8).digest(), "big") >> 1

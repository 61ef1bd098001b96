"""The interface of a training loss: its input, its output, and the mean over ranks.

Shape legend: B query-passage pairs and P >= B passages on this rank, k vectors of width d per query or passage, m labels
per query.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ret_lightning.distributed.collectives import row_counts, world_size
from ret_lightning.errors import UserError

PADDING = -1  # pads the labels of queries with fewer than m; valid labels are not negative

NONFINITE_REMEDY = (
    "training has diverged, or its precision is too low; lower optimizer.lr, lengthen scheduler.warmup_steps, clip gradients "
    "(trainer.gradient_clip_val), or set trainer.precision=bf16-mixed or 32-true"
)


@dataclass(frozen=True)
class EncodedBatch:
    """This rank's share of an encoded training batch: vectors, labels and additional columns. B may be 0 on some ranks.

    Attributes:
        query: (B, k, d) L2-normalised query vectors, with a gradient; (B, d) means k = 1.
        passage: (P, k', d) L2-normalised passage vectors, with a gradient: the positive of each query in the order of the
            queries, then the negatives that the rows name. (P, d) means k' = 1.
        labels: (B, m) int64, labels of the positive passages of each query, padded with `PADDING`; (B,) means m = 1. m may
            differ between ranks. Equal labels denote the same passage on every rank.
        passage_labels: (P,) int64, label of each passage. None, allowed if P = B, is replaced by the first label of each
            query.
        passage_rows: (P,) int64, index of the row, 0 to B - 1, that names each passage. None is replaced by 0 to B - 1 if
            P = B, and otherwise means that the rows are unknown.
        extra: Columns that the data module reads for the loss (`data.columns`, `data.passage_columns`), by name: (B,) or
            (B, n) float32 for a column of rows, (P,) float32 for a column of passages. Missing values are NaN.

    Raises:
        ValueError: If the numbers of rows are inconsistent.
    """

    query: Tensor
    passage: Tensor
    labels: Tensor
    passage_labels: Tensor = None  # type: ignore[assignment]  # None only as an argument; replaced in __post_init__
    passage_rows: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        def fill(name: str, value: Tensor) -> None:
            object.__setattr__(self, name, value)

        for name in ("query", "passage"):
            if getattr(self, name).dim() == 2:
                fill(name, getattr(self, name)[:, None])
        if self.labels.dim() == 1:
            fill("labels", self.labels[:, None])
        if self.labels.dim() != 2 or self.labels.shape[1] == 0:
            raise ValueError(
                f"EncodedBatch: expected labels of shape (B,) or (B, m) with m >= 1, got {tuple(self.labels.shape)}"
            )
        if self.passage_labels is None:
            fill("passage_labels", self.labels[:, 0])
        if self.passage_rows is None and len(self.passage) == len(self.query):
            fill("passage_rows", torch.arange(len(self.passage), device=self.passage.device))
        queries, passages = len(self.query), len(self.passage)
        of_passages = [self.passage_labels, *([] if self.passage_rows is None else [self.passage_rows])]
        if queries != len(self.labels) or passages < queries or any(x.shape != (passages,) for x in of_passages):
            raise ValueError(
                f"EncodedBatch: {queries} queries, {passages} passages, {len(self.labels)} rows of labels, passage_labels of "
                f"shape {tuple(self.passage_labels.shape)}"
                + ("" if self.passage_rows is None else f", passage_rows of shape {tuple(self.passage_rows.shape)}")
                + "; expected one passage per query, and one label and one row per passage"
            )

    def __len__(self) -> int:
        return len(self.query)

    def check_finite(self) -> None:
        """Check that all features are finite, with one GPU synchronisation.

        Raises:
            UserError: If a feature is infinite or NaN. The error reports the side and the rows.
        """
        if torch.isfinite(self.query.detach().sum() + self.passage.detach().sum()):
            return
        for side, vectors in (("queries", self.query), ("passages", self.passage)):
            rows = (~torch.isfinite(vectors.detach()).flatten(1).all(dim=1)).nonzero().flatten().tolist()
            if rows:
                listed = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
                raise UserError(
                    f"features of {side} {listed} of {len(vectors)} in this batch are not finite: {NONFINITE_REMEDY}",
                    code="features-not-finite",
                    side=side,
                    rows=rows,
                )


@dataclass(frozen=True)
class LossOutput:
    """The loss of one batch on this rank. The mean of each tensor over ranks is its value for the global batch.

    Attributes:
        loss: 0-d tensor with a gradient for every trained parameter. On a rank without rows the gradient is zero, because
            DDP waits for it.
        metrics: 0-d tensors without a gradient, by name; training logs each as `train/<name>`.
        pairs: Number of query-passage pairs in the global batch. A step without pairs is skipped.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor]
    pairs: int


class RetrievalLoss(nn.Module, ABC):
    """Base class of losses over a batch of encoded queries and passages.

    To add a loss, derive a class from this one and name it in a config of the group `loss`. Gradients reach the model
    through `batch.query` and `batch.passage` only, so gradient caching (`micro_batch`) works with every loss. A loss gathers
    what it needs from other ranks itself (`ret_lightning.distributed`); a loss that is a mean over rows uses
    `mean_over_rows`. The parameters of a loss are trained together with those of the model.
    """

    @abstractmethod
    def forward(self, batch: EncodedBatch) -> LossOutput:
        """Compute the loss of this rank's share of a batch.

        Args:
            batch: B pairs; B may be 0 on some ranks or on all of them. With `on_nonfinite=skip`, features may be infinite
                or NaN; the loss is then not finite.

        Returns:
            The loss, its metrics, and the number of pairs in the global batch.
        """


def mean_over_rows(values: Tensor) -> tuple[Tensor, int]:
    """Average a value over the rows of all ranks. A collective: all ranks must call it together.

    Args:
        values: (n,) values of this rank; n may differ between ranks and may be 0.

    Returns:
        A 0-d tensor whose mean over ranks, which DDP computes of the gradients, is the mean over all rows (0 without rows),
        and the number of rows on all ranks.
    """
    rows = sum(row_counts(values))
    return values.sum() * (world_size() / max(rows, 1)), rows

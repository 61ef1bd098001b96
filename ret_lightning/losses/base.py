"""The interface of a loss: what it receives of a batch, what it returns, and how ranks share one loss.

Shapes: B query-passage pairs and P >= B passages of this rank, k vectors of width d each, m labels per query.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ret_lightning.distributed.collectives import row_counts, world_size
from ret_lightning.errors import UserError

PADDING = -1  # fills the labels of a query that has fewer than others; no label is negative

NONFINITE_REMEDY = (
    "training has diverged, or its precision is too low; lower optimizer.lr, lengthen scheduler.warmup_steps, clip gradients "
    "(trainer.gradient_clip_val), or set trainer.precision=bf16-mixed or 32-true"
)


@dataclass(frozen=True)
class EncodedBatch:
    """The vectors of this rank's share of a training batch, with what the rows say about them. B may be 0 on some ranks.

    Attributes:
        query: (B, k, d) vectors of length 1, with a gradient; (B, d) is read as k = 1.
        passage: (P, k', d), as `query`: the positive of each query, in their order, then the negatives that rows name.
        labels: (B, m) int64, the labels of the passages that are positives of each query, padded with `PADDING`; (B,) is
            read as m = 1. m may differ between ranks. Equal labels mean the same passage, on whatever rank.
        passage_labels: (P,) int64, the label of each passage; None: each query's first label, where P is B.
        passage_rows: (P,) int64, which of the B rows names each passage; None: their order, where P is B.
        extra: the columns of the rows that the data module reads for the loss (`data.columns`, `data.passage_columns`): by
            name (B,) or (B, n) float32 for a column of rows, (P,) float32 for a column of passages; NaN where there is none.

    Raises:
        ValueError: if the numbers of rows do not fit each other.
    """

    query: Tensor
    passage: Tensor
    labels: Tensor
    passage_labels: Tensor | None = None
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
            raise ValueError(f"EncodedBatch: labels must be (B,) or (B, m) with m >= 1, got {tuple(self.labels.shape)}")
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
                + "; each query needs its passage, and each passage its label"
            )

    def __len__(self) -> int:
        return len(self.query)

    def check_finite(self) -> None:
        """Raise UserError if a feature is infinite or NaN, naming the side and the rows; a GPU is waited for once."""
        if torch.isfinite(self.query.detach().sum() + self.passage.detach().sum()):
            return
        for side, vectors in (("queries", self.query), ("passages", self.passage)):
            rows = (~torch.isfinite(vectors.detach()).flatten(1).all(dim=1)).nonzero().flatten().tolist()
            if rows:
                shown = ", ".join(map(str, rows[:5])) + (" and more" if len(rows) > 5 else "")
                raise UserError(
                    f"the features of {side} {shown} of {len(vectors)} in this batch are not finite: {NONFINITE_REMEDY}",
                    code="features-not-finite",
                    side=side,
                    rows=rows,
                )


@dataclass(frozen=True)
class LossOutput:
    """The loss of one batch. The mean over ranks of each tensor is its value for the global batch.

    Attributes:
        loss: 0-d, with a gradient to every parameter that is trained, also on a rank without rows (of zeros then): DDP
            waits for it.
        metrics: by name 0-d tensors without a gradient; training logs each as `train/<name>`.
        pairs: query-passage pairs of the global batch, over all ranks; where there are none the step is left out.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor]
    pairs: int


class RetrievalLoss(nn.Module, ABC):
    """A loss over a batch of encoded queries and passages. To add one: subclass, and name it in a config of the group `loss`.

    Gradients flow back through `batch.query` and `batch.passage` whatever the loss does with them, so gradient caching
    (`micro_batch`) works for any loss. What a loss needs of the other ranks it gathers itself (`ret_lightning.distributed`);
    a loss that is a mean over rows uses `mean_over_rows`. Parameters of a loss are trained like the model's.
    """

    @abstractmethod
    def forward(self, batch: EncodedBatch) -> LossOutput:
        """Compute the loss of this rank's share of a batch.

        Args:
            batch: B pairs; B may be 0, on some ranks or on all of them. Features may be infinite or NaN where training runs
                with on_nonfinite=skip; the loss is not finite then.
        """


def mean_over_rows(values: Tensor) -> tuple[Tensor, int]:
    """Average over the rows of all ranks.

    Args:
        values: (n,) this rank's; n may differ between ranks, and may be 0.

    Returns:
        A 0-d tensor whose mean over ranks (as DDP takes it of gradients) is the mean over all rows, and the number of these
        rows; 0 where there are none. Called on all ranks together.
    """
    rows = sum(row_counts(values))
    return values.sum() * (world_size() / max(rows, 1)), rows

"""The contrastive loss of ReT: InfoNCE over the passages (and queries) of the global batch, scored by MaxSim."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from ret_lightning.errors import ConfigError, UserError
from ret_lightning.losses.gather import gather_rows, row_counts, world_size
from ret_lightning.losses.maxsim import Backend, maxsim

# What to do where numbers are not finite.
REMEDY = (
    "training has diverged, or its precision is too low; lower optimizer.lr, lengthen scheduler.warmup_steps, clip gradients "
    "(trainer.gradient_clip_val), or set trainer.precision=bf16-mixed or 32-true"
)


@dataclass
class ContrastiveOutput:
    """What the loss gives for one batch. All are 0-d tensors; the mean over ranks of each is its value for the global batch.

    Attributes:
        loss: to go backward from.
        query_to_passage: cross-entropy of each query over all passages, detached.
        passage_to_query: cross-entropy of each passage over all queries, detached; None where the loss is one-way.
        pairs: of the global batch, over all ranks.
        query_recall: share of the queries whose best passage of the batch is a positive (in-batch recall@1).
        passage_recall: share of the passages whose best query is a positive; None where the loss is one-way.
    """

    loss: Tensor
    query_to_passage: Tensor
    passage_to_query: Tensor | None
    query_recall: Tensor
    passage_recall: Tensor | None
    pairs: int


class ContrastiveLoss(nn.Module):
    """Cross-entropy of the MaxSim scores of the global batch against its positives, both ways.

    With N query-passage pairs over all ranks, M further passages (negatives that rows name), S the (N, N + M) scores divided
    by the temperature, and T the targets, where row i spreads its mass evenly over the passages that have the same id as
    the positive of pair i,

        loss = 1/2 [ CE(S, T) + CE(S'^T, T') ]          CE(S, T) = -1/N sum_ij T_ij log softmax_j(S_i)

    S' and T' are the first N columns: a passage that came as a negative has no query to be found by. Each rank scores its
    own queries against all passages, and its own positives against all queries, and nothing more. The ranks' losses are
    scaled so that DDP's mean over ranks is the loss, and the gradient, of the whole batch, for batches of different sizes
    too.

    Args:
        symmetric: both ways; otherwise only from queries to passages.
        temperature: the scores are divided by it; 1, the published setting, leaves them in [-k, k].
        learn_temperature: whether it is trained, from there, as its logarithm.
        backend: of MaxSim.
        micro_batch: most pairs that are encoded at once in training, see `models.pieces`; None: the whole batch.

    Attributes:
        check_finite: whether features that are not finite are an error here; otherwise they make the loss a NaN.
        allow_empty: whether a batch may have no pair on any rank, as in training that leaves bad rows out; its loss is then
            0, and so are its gradients. Otherwise that is an error.
    """

    def __init__(
        self,
        symmetric: bool = True,
        temperature: float = 1.0,
        learn_temperature: bool = False,
        backend: Backend = "auto",
        micro_batch: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 < temperature < math.inf:
            raise ConfigError(f"loss.temperature={temperature} must be positive, and finite")
        if backend not in get_args(Backend):
            raise ConfigError(f"loss.backend={backend}: choose one of {', '.join(get_args(Backend))}")
        if micro_batch is not None and micro_batch < 1:
            raise ConfigError(f"loss.micro_batch={micro_batch} must be at least 1; null encodes the batch at once")
        self.symmetric = symmetric
        self.backend = backend
        self.micro_batch = micro_batch
        self.check_finite = True
        self.allow_empty = False
        log_temperature = torch.tensor(math.log(temperature))
        self.log_temperature = nn.Parameter(log_temperature) if learn_temperature else None
        self._temperature = temperature

    @property
    def temperature(self) -> float | Tensor:
        """What the scores are divided by; a 0-d tensor with a gradient where it is trained."""
        return self._temperature if self.log_temperature is None else self.log_temperature.exp()

    def forward(
        self, query: Tensor, passage: Tensor, labels: Tensor, passage_labels: Tensor | None = None
    ) -> ContrastiveOutput:
        """The loss of this rank's share of a batch.

        Args:
            query: (B, k, d) normalised vectors of B queries, or (B, d) pooled ones; B may be 0 on some ranks.
            passage: (P, k', d) or (P, d), P >= B: the positive of each query, in their order, then further passages.
            labels: (B,) int64, equal where two pairs have the same passage id, on whatever rank.
            passage_labels: (P,) likewise of the passages, beginning with `labels`; None: there are no further ones, on any
                rank.

        Raises:
            ValueError: if the shapes do not fit, or no rank has a pair and `allow_empty` is not set.
            UserError: if features are not finite, and `check_finite` is set.
        """
        if passage_labels is None:
            passage_labels = labels
        if len(query) != len(labels) or len(passage) != len(passage_labels) or len(passage) < len(query):
            raise ValueError(
                f"ContrastiveLoss: {len(query)} queries, {len(passage)} passages, {len(labels)} labels and "
                f"{len(passage_labels)} passage labels; each query needs its passage, and each of them its label"
            )
        if passage_labels is not labels and not torch.equal(passage_labels[: len(labels)], labels):
            raise ValueError(
                "ContrastiveLoss: passage_labels must begin with the labels of the queries, in their order"
            )
        if self.check_finite:
            _check_finite(query, passage)
        own = len(query)
        counts, passage_counts = row_counts(labels), row_counts(passage_labels)
        pairs = sum(counts)
        if pairs == 0:
            if not self.allow_empty:
                raise ValueError(
                    "ContrastiveLoss: the batch is empty on every rank; leave it out, or set loss.allow_empty"
                )
            return self._of_nothing(query, passage)
        if query.dim() == 2:
            query, passage = query[:, None], passage[:, None]
        weight = world_size() / pairs  # times the mean over ranks: one over the number of pairs

        positive = labels[:, None] == gather_rows(passage_labels, passage_counts)[None, :]
        scores = maxsim(query, gather_rows(passage, passage_counts), backend=self.backend) / self.temperature
        forward_loss, forward_recall = _direction(scores, positive, weight)
        if not self.symmetric:
            return ContrastiveOutput(forward_loss, forward_loss.detach(), None, forward_recall, None, pairs)
        if world_size() == 1:  # alone, a rank has all scores already
            back, back_positive = scores[:, :own].T, positive[:, :own].T
        else:  # among others it lacks those of their queries against its passages
            every_query = gather_rows(query, counts)
            back = maxsim(every_query, passage[:own], backend=self.backend).T / self.temperature
            back_positive = labels[:, None] == gather_rows(labels, counts)[None, :]
        backward_loss, backward_recall = _direction(back, back_positive, weight)
        return ContrastiveOutput(
            loss=(forward_loss + backward_loss) / 2,
            query_to_passage=forward_loss.detach(),
            passage_to_query=backward_loss.detach(),
            query_recall=forward_recall,
            passage_recall=backward_recall,
            pairs=pairs,
        )

    def _of_nothing(self, query: Tensor, passage: Tensor) -> ContrastiveOutput:
        # Not a constant: whatever is trained gets a gradient, of zeros, which DDP waits for.
        loss = query.sum() + passage.sum() + 0 * sum(p.sum() for p in self.parameters())
        zero = loss.detach()
        back = zero if self.symmetric else None
        return ContrastiveOutput(loss, zero, back, zero, back, pairs=0)


def _direction(scores: Tensor, positive: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy and recall@1 of own rows (B, n), each summed and weighted."""
    targets = positive / positive.sum(dim=1, keepdim=True)
    loss = -(targets * torch.log_softmax(scores, dim=1)).sum() * weight
    best = scores.detach().argmax(dim=1, keepdim=True)
    return loss, positive.gather(1, best).float().sum() * weight


def _check_finite(query: Tensor, passage: Tensor) -> None:
    # One number for both, so that a GPU is waited for once.
    if torch.isfinite(query.detach().sum() + passage.detach().sum()):
        return
    for name, vectors in (("queries", query), ("passages", passage)):
        rows = (~torch.isfinite(vectors.detach()).flatten(1).all(dim=1)).nonzero().flatten().tolist()
        if rows:
            shown = ", ".join(map(str, rows[:5])) + (" and more" if len(rows) > 5 else "")
            raise UserError(
                f"ContrastiveLoss: the features of {name} {shown} of {len(vectors)} in this batch are not finite: {REMEDY}"
            )

"""The contrastive loss of ReT: InfoNCE over the passages (and queries) of the global batch, scored by MaxSim.

Shapes: B queries of this rank, P >= B passages of this rank, k vectors of width d each, m labels per query. Over all ranks:
N queries and N + M passages.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ret_lightning.distributed.collectives import gather_rows, gather_sizes, rank, world_size
from ret_lightning.errors import ConfigError, UserError
from ret_lightning.ops.maxsim import Backend, maxsim

log = logging.getLogger(__name__)

# Looked at for queries without negatives; on a GPU each look waits for the device.
_CHECKED_BATCHES = 100

PADDING = -1  # fills the labels of a query that has fewer than others; no label is negative

# What to do where numbers are not finite.
REMEDY = (
    "training has diverged, or its precision is too low; lower optimizer.lr, lengthen scheduler.warmup_steps, clip gradients "
    "(trainer.gradient_clip_val), or set trainer.precision=bf16-mixed or 32-true"
)


@dataclass
class ContrastiveOutput:
    """The loss of one batch. All tensors are 0-d; the mean over ranks of each is its value for the global batch.

    Attributes:
        loss: with a gradient.
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
    """Cross-entropy of the MaxSim scores of the global batch against its positives, in both directions.

    A passage has one label, a query one or several; a query and a passage are positives of each other where the passage's
    label is one of the query's. With N query-passage pairs over all ranks, M further passages (negatives that rows name),
    and S the (N, N + M) scores divided by the temperature,

        loss = 1/2 [ CE(S, T) + CE(S'^T, T') ]          CE(S, T) = -1/N sum_ij T_ij log softmax_j(S_i)

    where row i of T spreads its mass evenly over the positives of query i, S' is the first N columns of S, and row j of T'
    spreads its mass evenly over the queries that are positives of passage j. The M further passages have no row in T'.

    Each rank scores its own queries against all passages, and its own positives against all queries. The ranks' losses are
    scaled so that DDP's mean over ranks is the loss, and the gradient, of the whole batch, for batches of different sizes
    too.

    Args:
        symmetric: both directions; otherwise only from queries to passages.
        temperature: the scores are divided by it; 1, the published setting, leaves them in [-k, k].
        learn_temperature: whether the temperature is trained, as its logarithm, from this value on.
        backend: of MaxSim.
        micro_batch: largest number of pairs that training encodes at once, see `models.gradient_cache`; None: the whole batch.

    Attributes:
        check_finite: whether features that are not finite raise an error; otherwise they make the loss NaN.
        allow_empty: whether a batch may have no pair on any rank, as in training that leaves bad rows out; its loss is then
            0, and so are its gradients. Otherwise that is an error.

    Raises:
        ConfigError: if an argument is out of range.
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
            raise ConfigError(
                f"loss.temperature={temperature} must be positive and finite",
                code="loss-temperature",
                key="loss.temperature",
                found=temperature,
            )
        if backend not in get_args(Backend):
            raise ConfigError(
                f"loss.backend={backend} must be one of {', '.join(get_args(Backend))}",
                code="loss-backend",
                key="loss.backend",
                found=backend,
                allowed=get_args(Backend),
            )
        if micro_batch is not None and micro_batch < 1:
            raise ConfigError(
                f"loss.micro_batch={micro_batch} must be at least 1; null encodes the batch at once",
                code="loss-micro-batch",
                key="loss.micro_batch",
                found=micro_batch,
            )
        self.symmetric = symmetric
        self.backend = backend
        self.micro_batch = micro_batch
        self.check_finite = True
        self.allow_empty = False
        self._batches_to_check = _CHECKED_BATCHES
        log_temperature = torch.tensor(math.log(temperature))
        self.log_temperature = nn.Parameter(log_temperature) if learn_temperature else None
        self._temperature = temperature

    @property
    def temperature(self) -> float | Tensor:
        """The divisor of the scores; a 0-d tensor with a gradient where it is trained."""
        return self._temperature if self.log_temperature is None else self.log_temperature.exp()

    def forward(
        self, query: Tensor, passage: Tensor, labels: Tensor, passage_labels: Tensor | None = None
    ) -> ContrastiveOutput:
        """Compute the loss of this rank's share of a batch.

        Args:
            query: (B, k, d) normalised vectors of B queries, or (B, d) pooled ones; B may be 0 on some ranks.
            passage: (P, k', d) or (P, d), P >= B: the positive of each query, in their order, then further passages.
            labels: (B, m) int64, each query's labels, none negative, padded with `PADDING`; (B,) means one label each. m
                may differ between ranks. Labels are equal where passages are the same, on whatever rank.
            passage_labels: (P,) int64, one label per passage; those of the first B passages are among the labels of their
                queries. None: the first label of each query; then no rank has further passages.

        Raises:
            ValueError: if shapes or labels do not fit, or no rank has a pair and `allow_empty` is not set.
            UserError: if features are not finite, and `check_finite` is set.
        """
        if labels.dim() == 1:
            labels = labels[:, None]
        if passage_labels is None:
            passage_labels = labels[:, 0]
        _check_labels(query, passage, labels, passage_labels)
        if self.check_finite:
            _check_finite(query, passage)
        own = len(query)
        sizes = gather_sizes((own, len(passage), labels.shape[1]), labels.device)
        counts, passage_counts, widths = zip(*sizes, strict=True)
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

        positive = _any_equal(labels[:, None], gather_rows(passage_labels, passage_counts))
        self._warn_without_negatives(positive)
        scores = maxsim(query, gather_rows(passage, passage_counts), backend=self.backend) / self.temperature
        forward_loss, forward_recall = _direction(scores, positive, weight)
        if not self.symmetric:
            return ContrastiveOutput(forward_loss, forward_loss.detach(), None, forward_recall, None, pairs)
        if world_size() == 1:  # these scores hold those of every passage against every query
            back, back_positive = scores[:, :own].T, positive[:, :own].T
        else:  # the scores of this rank's passages against the other ranks' queries are not among them
            every_query = gather_rows(query, counts)
            back = maxsim(every_query, passage[:own], backend=self.backend).T / self.temperature
            padded = pad(labels, (0, max(widths) - labels.shape[1]), value=PADDING)
            back_positive = _any_equal(gather_rows(padded, counts), passage_labels[:own, None])
        backward_loss, backward_recall = _direction(back, back_positive, weight)
        return ContrastiveOutput(
            loss=(forward_loss + backward_loss) / 2,
            query_to_passage=forward_loss.detach(),
            passage_to_query=backward_loss.detach(),
            query_recall=forward_recall,
            passage_recall=backward_recall,
            pairs=pairs,
        )

    def _warn_without_negatives(self, positive: Tensor) -> None:
        """Warn once if a global batch has no negative for some of this rank's queries, among the first batches."""
        if not self._batches_to_check or rank() != 0 or not len(positive):
            return
        self._batches_to_check -= 1
        without = int(positive.all(dim=1).sum())
        if without:
            self._batches_to_check = 0
            log.warning(
                "%d of %d queries of a batch have no negative: the global batch (data.batch_size times the ranks) has only "
                "their positives, and the loss of a single pair is 0. trainer.accumulate_grad_batches adds no negatives; "
                "raise data.batch_size, with loss.micro_batch (gradient caching) if that exceeds the memory",
                *(without, len(positive)),
            )

    def _of_nothing(self, query: Tensor, passage: Tensor) -> ContrastiveOutput:
        # Not a constant: whatever is trained gets a gradient, of zeros, which DDP waits for.
        loss = query.sum() + passage.sum() + 0 * sum(p.sum() for p in self.parameters())
        zero = loss.detach()
        back = zero if self.symmetric else None
        return ContrastiveOutput(loss, zero, back, zero, back, pairs=0)


def _any_equal(labels: Tensor, others: Tensor) -> Tensor:
    """Compare m labels with another, one after the other, so that no tensor is larger than the result.

    Args:
        labels: (..., m), m >= 1.
        others: any shape that broadcasts with (...).

    Returns:
        bool, the broadcast shape: whether any of the m labels equals the other.
    """
    found = labels[..., 0] == others
    for i in range(1, labels.shape[-1]):
        found |= labels[..., i] == others
    return found


def _direction(scores: Tensor, positive: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """Compute cross-entropy and recall@1 of own rows (B, n), each summed over rows and weighted."""
    # At least float32: scores of the plain backend under autocast are half precision.
    dtype = torch.promote_types(scores.dtype, torch.float32)
    targets = positive / positive.sum(dim=1, keepdim=True, dtype=dtype)
    loss = -(targets * torch.log_softmax(scores, dim=1)).sum() * weight
    best = scores.detach().argmax(dim=1, keepdim=True)
    return loss, positive.gather(1, best).float().sum() * weight


def _check_labels(query: Tensor, passage: Tensor, labels: Tensor, passage_labels: Tensor) -> None:
    if labels.dim() != 2 or labels.shape[1] == 0 or passage_labels.dim() != 1:
        raise ValueError(
            f"ContrastiveLoss: labels must be (B,) or (B, m) with m >= 1, and passage_labels (P,), got "
            f"{tuple(labels.shape)} and {tuple(passage_labels.shape)}"
        )
    if len(query) != len(labels) or len(passage) != len(passage_labels) or len(passage) < len(query):
        raise ValueError(
            f"ContrastiveLoss: {len(query)} queries, {len(passage)} passages, {len(labels)} labels and "
            f"{len(passage_labels)} passage labels; each query needs its passage, and each of them its label"
        )
    own = _any_equal(labels, passage_labels[: len(query)])
    if not (own.all() & (passage_labels >= 0).all()):  # one number, so that a GPU is waited for once
        raise ValueError(
            "ContrastiveLoss: passage_labels must not be negative, and must begin with a label of each query, in their order"
        )


def _check_finite(query: Tensor, passage: Tensor) -> None:
    # One number for both, so that a GPU is waited for once.
    if torch.isfinite(query.detach().sum() + passage.detach().sum()):
        return
    for name, vectors in (("queries", query), ("passages", passage)):
        rows = (~torch.isfinite(vectors.detach()).flatten(1).all(dim=1)).nonzero().flatten().tolist()
        if rows:
            shown = ", ".join(map(str, rows[:5])) + (" and more" if len(rows) > 5 else "")
            raise UserError(
                f"ContrastiveLoss: the features of {name} {shown} of {len(vectors)} in this batch are not finite: {REMEDY}",
                code="features-not-finite",
                side=name,
                rows=rows,
            )

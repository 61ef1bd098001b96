"""The contrastive loss of ReT: InfoNCE over the passages (and queries) of the global batch, scored by MaxSim.

Shapes: B queries of this rank, P >= B passages of this rank, k vectors of width d each, m labels per query. Over all ranks:
N queries and N + M passages.
"""

from __future__ import annotations

import logging
import math
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ret_lightning.distributed.collectives import gather_rows, gather_sizes, rank, world_size
from ret_lightning.errors import ConfigError
from ret_lightning.losses.base import PADDING, EncodedBatch, LossOutput, RetrievalLoss
from ret_lightning.ops.maxsim import Backend, maxsim

log = logging.getLogger(__name__)

# Looked at for queries without negatives; on a GPU each look waits for the device.
_CHECKED_BATCHES = 100


class ContrastiveLoss(RetrievalLoss):
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

    The metrics of a batch are `loss_query_to_passage`, the cross-entropy of each query over all passages; `query_recall@1`,
    the share of the queries whose best passage of the batch is a positive; the same of the other direction,
    `loss_passage_to_query` and `passage_recall@1`, where the loss is symmetric; and `temperature` where it is learned. Of a
    batch without a pair on any rank all are 0, and so is the loss.

    Raises:
        ConfigError: if an argument is out of range.
    """

    def __init__(
        self,
        symmetric: bool = True,
        temperature: float = 1.0,
        learn_temperature: bool = False,
        backend: Backend = "auto",
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
        self.symmetric = symmetric
        self.backend = backend
        self._batches_to_check = _CHECKED_BATCHES
        log_temperature = torch.tensor(math.log(temperature))
        self.log_temperature = nn.Parameter(log_temperature) if learn_temperature else None
        self._temperature = temperature

    @property
    def temperature(self) -> float | Tensor:
        """The divisor of the scores; a 0-d tensor with a gradient where it is trained."""
        return self._temperature if self.log_temperature is None else self.log_temperature.exp()

    def forward(self, batch: EncodedBatch) -> LossOutput:
        """Compute the loss of this rank's share of a batch.

        Args:
            batch: the labels of the first B passages are among the labels of their queries.

        Raises:
            ValueError: if the labels do not fit.
        """
        _check_labels(batch)
        query, passage, labels, passage_labels = batch.query, batch.passage, batch.labels, batch.passage_labels
        own = len(query)
        sizes = gather_sizes((own, len(passage), labels.shape[1]), labels.device)
        counts, passage_counts, widths = zip(*sizes, strict=True)
        pairs = sum(counts)
        if pairs == 0:
            # Not a constant: whatever is trained gets a gradient, of zeros, which DDP waits for.
            nothing = query.sum() + passage.sum() + 0 * sum(p.sum() for p in self.parameters())
            zero = nothing.detach()
            return self._output((nothing, zero), (nothing, zero) if self.symmetric else None, 0)
        weight = world_size() / pairs  # times the mean over ranks: one over the number of pairs

        positive = _any_equal(labels[:, None], gather_rows(passage_labels, passage_counts))
        self._warn_without_negatives(positive)
        scores = maxsim(query, gather_rows(passage, passage_counts), backend=self.backend) / self.temperature
        forward = _direction(scores, positive, weight)
        if not self.symmetric:
            return self._output(forward, None, pairs)
        if world_size() == 1:  # these scores hold those of every passage against every query
            back, back_positive = scores[:, :own].T, positive[:, :own].T
        else:  # the scores of this rank's passages against the other ranks' queries are not among them
            every_query = gather_rows(query, counts)
            back = maxsim(every_query, passage[:own], backend=self.backend).T / self.temperature
            padded = pad(labels, (0, max(widths) - labels.shape[1]), value=PADDING)
            back_positive = _any_equal(gather_rows(padded, counts), passage_labels[:own, None])
        return self._output(forward, _direction(back, back_positive, weight), pairs)

    def _output(self, forward: tuple[Tensor, Tensor], backward: tuple[Tensor, Tensor] | None, pairs: int) -> LossOutput:
        """Combine the cross-entropy and recall of each direction."""
        loss = forward[0] if backward is None else (forward[0] + backward[0]) / 2
        metrics = {"loss_query_to_passage": forward[0].detach(), "query_recall@1": forward[1]}
        if backward is not None:
            metrics |= {"loss_passage_to_query": backward[0].detach(), "passage_recall@1": backward[1]}
        if self.log_temperature is not None:
            metrics["temperature"] = self.temperature.detach()
        return LossOutput(loss, metrics, pairs)

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
                "raise data.batch_size, with micro_batch (gradient caching) if that exceeds the memory",
                *(without, len(positive)),
            )


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


def _check_labels(batch: EncodedBatch) -> None:
    own = _any_equal(batch.labels, batch.passage_labels[: len(batch)])
    if not (own.all() & (batch.passage_labels >= 0).all()):  # one number, so that a GPU is waited for once
        raise ValueError(
            "ContrastiveLoss: passage_labels must not be negative, and must begin with a label of each query, in their order"
        )

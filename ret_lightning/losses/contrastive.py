"""The contrastive loss of ReT: symmetric InfoNCE over the global batch, with MaxSim scores.

Shape legend: B queries and P >= B passages on this rank, k vectors of width d per query or passage, m labels per query.
Over all ranks: N queries and N + M passages.
"""

from __future__ import annotations

import logging
import math
from typing import cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ret_lightning.distributed.collectives import gather_rows, gather_sizes, rank, world_size
from ret_lightning.errors import ConfigError
from ret_lightning.losses.base import PADDING, EncodedBatch, LossOutput, RetrievalLoss
from ret_lightning.ops.maxsim import Backend, maxsim

log = logging.getLogger(__name__)

# Batches that are checked for queries without negatives; on a GPU each check synchronises with the device.
_CHECKED_BATCHES = 100


class ContrastiveLoss(RetrievalLoss):
    """Symmetric InfoNCE loss over MaxSim scores, with all passages of the global batch as candidates.

    A passage has one label and a query has one or more. A query and a passage are positives of each other if the label of
    the passage is one of the labels of the query. Let N be the number of query-passage pairs on all ranks, M the number of
    additional negatives that the rows name, and tau the temperature:

        S_ij = MaxSim(query_i, passage_j) / tau              (N, N + M)
        loss = 1/2 [ CE(S, T) + CE(S'^T, T') ]               CE(S, T) = -1/N sum_ij T_ij log softmax_j(S_i)

    Row i of the target T is uniform over the positives of query i. S' is the first N columns of S, and row j of T' is
    uniform over the queries that are positives of passage j. The M negatives have no row in T'.

    This is the training objective of ReT (arXiv 2503.01980): InfoNCE (van den Oord et al., 2018, arXiv 1807.03748) in both
    directions, with the late-interaction score of ColBERT (Khattab and Zaharia, 2020, arXiv 2004.12832), without a
    temperature (tau = 1) and without mined negatives (M = 0).

    Each rank scores its queries against all passages, and its positives against all queries. The loss of a rank is scaled
    so that the mean over ranks, as computed by DDP, is the loss and gradient of the global batch, also for uneven batches.

    Metrics:
        - `loss_query_to_passage`: cross-entropy of the queries over all passages.
        - `query_recall@1`: fraction of queries whose highest-scoring passage in the batch is a positive.
        - `loss_passage_to_query`, `passage_recall@1`: the same for the other direction, if `symmetric`.
        - `temperature`: the current temperature, if `learn_temperature`.

    The loss and all metrics are 0 if the global batch has no pairs.

    Args:
        symmetric: Whether to average both directions; otherwise only query to passage is used.
        temperature: Divisor of the scores, positive and finite. The published value, 1, leaves them in [-k, k].
        learn_temperature: Whether to train the logarithm of the temperature, starting from `temperature`.
        backend: MaxSim backend: `auto`, `plain`, `chunked` or `fused`.

    Raises:
        ConfigError: If an argument is out of range.
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
                f"loss.temperature={temperature}: expected a positive, finite number",
                code="loss-temperature",
                key="loss.temperature",
                found=temperature,
            )
        if backend not in get_args(Backend):
            raise ConfigError(
                f"loss.backend={backend}: expected one of {', '.join(get_args(Backend))}",
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
        """The divisor of the scores; a 0-d tensor with a gradient if it is trained."""
        return self._temperature if self.log_temperature is None else self.log_temperature.exp()

    def forward(self, batch: EncodedBatch) -> LossOutput:
        """Compute the loss of this rank's share of a batch.

        Args:
            batch: The label of each of the first B passages must be one of the labels of its query.

        Returns:
            The loss, its metrics, and the number of pairs in the global batch.

        Raises:
            ValueError: If the labels are inconsistent.
        """
        _check_labels(batch)
        query, passage, labels, passage_labels = batch.query, batch.passage, batch.labels, batch.passage_labels
        own = len(query)
        sizes = gather_sizes((own, len(passage), labels.shape[1]), labels.device)
        counts, passage_counts, widths = zip(*sizes, strict=True)
        pairs = sum(counts)
        if pairs == 0:
            # A sum instead of a constant: DDP waits for a gradient, here zero, of every trained parameter.
            empty = query.sum() + passage.sum() + 0 * sum(p.sum() for p in self.parameters())
            zero = empty.detach()
            return self._output((empty, zero), (empty, zero) if self.symmetric else None, 0)
        weight = world_size() / pairs  # the mean over ranks then divides by the number of pairs

        positive = _any_equal(labels[:, None], gather_rows(passage_labels, passage_counts))
        self._warn_without_negatives(positive)
        scores = maxsim(query, gather_rows(passage, passage_counts), backend=self.backend) / self.temperature
        forward = _direction(scores, positive, weight)
        if not self.symmetric:
            return self._output(forward, None, pairs)
        if world_size() == 1:  # the scores already cover every passage and query
            back, back_positive = scores[:, :own].T, positive[:, :own].T
        else:  # score this rank's passages against the queries of the other ranks as well
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
            metrics["temperature"] = cast(Tensor, self.temperature).detach()
        return LossOutput(loss, metrics, pairs)

    def _warn_without_negatives(self, positive: Tensor) -> None:
        """Warn once if one of the first global batches has no negative for some of this rank's queries."""
        if not self._batches_to_check or rank() != 0 or not len(positive):
            return
        self._batches_to_check -= 1
        without = int(positive.all(dim=1).sum())
        if without:
            self._batches_to_check = 0
            log.warning(
                "%d of %d queries of a batch have no negative: the global batch (data.batch_size times the ranks) contains "
                "only their positives, and the loss of a single pair is 0. trainer.accumulate_grad_batches adds no "
                "negatives; increase data.batch_size, with micro_batch (gradient caching) if it exceeds the memory",
                *(without, len(positive)),
            )


def _any_equal(labels: Tensor, others: Tensor) -> Tensor:
    """Return whether any of m labels equals another label, without a tensor larger than the result.

    Args:
        labels: (..., m), m >= 1.
        others: Any shape that broadcasts with (...).

    Returns:
        bool tensor of the broadcast shape.
    """
    found = labels[..., 0] == others
    for i in range(1, labels.shape[-1]):
        found |= labels[..., i] == others
    return found


def _direction(scores: Tensor, positive: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy and the recall@1 of this rank's rows (B, n), each summed over rows and weighted."""
    # At least float32: under autocast, the plain backend returns half-precision scores.
    dtype = torch.promote_types(scores.dtype, torch.float32)
    targets = positive / positive.sum(dim=1, keepdim=True, dtype=dtype)
    loss = -(targets * torch.log_softmax(scores, dim=1)).sum() * weight
    best = scores.detach().argmax(dim=1, keepdim=True)
    return loss, positive.gather(1, best).float().sum() * weight


def _check_labels(batch: EncodedBatch) -> None:
    own = _any_equal(batch.labels, batch.passage_labels[: len(batch)])
    if not (own.all() & (batch.passage_labels >= 0).all()):  # one GPU synchronisation for both conditions
        raise ValueError(
            "ContrastiveLoss: expected passage_labels >= 0 whose first B entries are each a label of the query of that row"
        )

"""The contrastive loss of ReT: InfoNCE over the passages (and queries) of the global batch, scored by MaxSim."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ret_lightning.errors import ConfigError
from ret_lightning.losses.gather import gather_rows, row_counts, world_size
from ret_lightning.losses.maxsim import Backend, maxsim


@dataclass
class ContrastiveOutput:
    """What the loss gives for one batch. All are 0-d tensors; the mean over ranks of each is its value for the global batch.

    Attributes:
        loss: to go backward from.
        query_to_passage: cross-entropy of each query over all passages, detached.
        passage_to_query: cross-entropy of each passage over all queries, detached; None where the loss is one-way.
        query_recall: share of the queries whose best passage of the batch is a positive (in-batch recall@1).
        passage_recall: share of the passages whose best query is a positive; None where the loss is one-way.
    """

    loss: Tensor
    query_to_passage: Tensor
    passage_to_query: Tensor | None
    query_recall: Tensor
    passage_recall: Tensor | None


class ContrastiveLoss(nn.Module):
    """Cross-entropy of the MaxSim scores of the global batch against its positives, both ways.

    With N query-passage pairs over all ranks, S the (N, N) scores divided by the temperature, and T the targets, where
    row i spreads its mass evenly over the pairs that have the same passage id as pair i,

        loss = 1/2 [ CE(S, T) + CE(S^T, T) ]          CE(S, T) = -1/N sum_ij T_ij log softmax_j(S_i)

    Each rank scores its own queries against all passages, and its own passages against all queries, and nothing more.
    The ranks' losses are scaled so that DDP's mean over ranks is the loss, and the gradient, of the whole batch, for
    batches of different sizes too.

    Args:
        symmetric: both ways; otherwise only from queries to passages.
        temperature: the scores are divided by it; 1, the published setting, leaves them in [-k, k].
        backend: of MaxSim.
    """

    def __init__(self, symmetric: bool = True, temperature: float = 1.0, backend: Backend = "auto") -> None:
        super().__init__()
        if temperature <= 0:
            raise ConfigError(f"loss.temperature={temperature} must be positive")
        self.symmetric = symmetric
        self.temperature = temperature
        self.backend = backend

    def forward(self, query: Tensor, passage: Tensor, labels: Tensor) -> ContrastiveOutput:
        """The loss of this rank's share of a batch.

        Args:
            query: (B, k, d) normalised vectors of B queries, or (B, d) pooled ones.
            passage: (B, k', d) or (B, d), the positive of each query.
            labels: (B,) int64, equal where two pairs have the same passage id, on whatever rank.

        Raises:
            ValueError: if the batch is empty, or the shapes do not fit.
        """
        if len(query) != len(passage) or labels.shape != query.shape[:1]:
            raise ValueError(
                f"ContrastiveLoss: {len(query)} queries, {len(passage)} passages and {len(labels)} labels; "
                "each query needs its passage and its label"
            )
        counts = row_counts(labels)
        if sum(counts) == 0:
            raise ValueError("ContrastiveLoss: the batch is empty")
        if query.dim() == 2:
            query, passage = query[:, None], passage[:, None]
        all_labels = gather_rows(labels, counts)
        positive = labels[:, None] == all_labels[None, :]
        targets = positive / positive.sum(dim=1, keepdim=True)
        weight = world_size() / sum(counts)  # times the mean over ranks: one over the number of pairs

        scores = maxsim(query, gather_rows(passage, counts), backend=self.backend) / self.temperature
        forward_loss, forward_recall = _direction(scores, targets, positive, weight)
        if not self.symmetric:
            return ContrastiveOutput(forward_loss, forward_loss.detach(), None, forward_recall, None)
        # Alone, a rank has all scores already; among others it lacks those of their queries against its passages.
        back = scores.T if world_size() == 1 else _back_scores(query, passage, counts, self.backend) / self.temperature
        backward_loss, backward_recall = _direction(back, targets, positive, weight)
        return ContrastiveOutput(
            loss=(forward_loss + backward_loss) / 2,
            query_to_passage=forward_loss.detach(),
            passage_to_query=backward_loss.detach(),
            query_recall=forward_recall,
            passage_recall=backward_recall,
        )


def _back_scores(query: Tensor, passage: Tensor, counts: list[int], backend: Backend) -> Tensor:
    """(B, N): each own passage against the queries of all ranks; the maximum still runs over the passage's vectors."""
    return maxsim(gather_rows(query, counts), passage, backend=backend).T


def _direction(scores: Tensor, targets: Tensor, positive: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy and recall@1 of own rows (B, N), each summed and weighted."""
    loss = -(targets * torch.log_softmax(scores, dim=1)).sum() * weight
    best = scores.detach().argmax(dim=1, keepdim=True)
    return loss, positive.gather(1, best).float().sum() * weight

"""The contrastive loss against the formula written out, and several ranks against one."""

from __future__ import annotations

import math
import os
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor

from ret_lightning.errors import ConfigError, UserError
from ret_lightning.losses import ContrastiveLoss


def features(count: int, k: int = 3, width: int = 6) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(count)
    make = lambda: torch.nn.functional.normalize(  # noqa: E731
        torch.randn(count, k, width, generator=random, dtype=torch.float64), dim=-1
    )
    return make(), make()


def by_loops(
    query: Tensor, passage: Tensor, labels: list[int], temperature: float = 1.0
) -> tuple[float, float, float, float]:
    """Both directions and both recalls, from the definition."""
    count = len(labels)
    score = [
        [sum(max(float(q @ p) for p in passage[j]) for q in query[i]) / temperature for j in range(count)]
        for i in range(count)
    ]

    def direction(rows: list[list[float]]) -> tuple[float, float]:
        total, hits = 0.0, 0
        for i, row in enumerate(rows):
            positives = [j for j in range(count) if labels[j] == labels[i]]
            log_sum = math.log(sum(math.exp(s) for s in row))
            total -= sum((row[j] - log_sum) / len(positives) for j in positives)
            hits += row.index(max(row)) in positives
        return total / count, hits / count

    forward, recall = direction(score)
    backward, back_recall = direction([list(column) for column in zip(*score, strict=True)])
    return forward, backward, recall, back_recall


@pytest.mark.parametrize("labels", [[0, 1, 2, 3, 4], [0, 1, 0, 2, 0], [7, 7, 7, 7, 7]])
@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_the_definition(labels: list[int], temperature: float) -> None:
    query, passage = features(5)
    output = ContrastiveLoss(temperature=temperature)(query, passage, torch.tensor(labels))
    forward, backward, recall, back_recall = by_loops(query, passage, labels, temperature)
    assert output.query_to_passage.item() == pytest.approx(forward)
    assert output.passage_to_query.item() == pytest.approx(backward)
    assert output.loss.item() == pytest.approx((forward + backward) / 2)
    assert output.query_recall.item() == pytest.approx(recall)
    assert output.passage_recall.item() == pytest.approx(back_recall)
    one_way = ContrastiveLoss(symmetric=False, temperature=temperature)(query, passage, torch.tensor(labels))
    assert one_way.loss.item() == pytest.approx(forward)
    assert one_way.passage_to_query is None


def test_pooled_vectors_are_scored_by_their_product() -> None:
    query, passage = features(4, k=1)
    labels = torch.arange(4)
    pooled = ContrastiveLoss()(query[:, 0], passage[:, 0], labels).loss
    logits = query[:, 0] @ passage[:, 0].T
    expected = (
        torch.nn.functional.cross_entropy(logits, labels) + torch.nn.functional.cross_entropy(logits.T, labels)
    ) / 2
    torch.testing.assert_close(pooled, expected)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_learned_temperature_is_that_temperature_and_has_its_gradient(symmetric: bool) -> None:
    query, passage = features(5)
    labels = torch.tensor([0, 1, 0, 2, 3])
    loss = ContrastiveLoss(symmetric, temperature=0.2, learn_temperature=True).double()
    assert [name for name, _ in loss.named_parameters()] == ["log_temperature"]
    assert list(ContrastiveLoss(temperature=0.2).parameters()) == []
    learned = loss(query, passage, labels).loss
    learned.backward()

    def at(log_temperature: float) -> float:
        return ContrastiveLoss(symmetric, temperature=math.exp(log_temperature))(query, passage, labels).loss.item()

    assert learned.item() == pytest.approx(at(math.log(0.2)))
    slope = (at(math.log(0.2) + 1e-5) - at(math.log(0.2) - 1e-5)) / 2e-5
    assert loss.log_temperature.grad.item() == pytest.approx(slope, rel=1e-6)


def test_further_passages_are_negatives_of_all_unless_their_id_says_otherwise() -> None:
    query, passage = features(4)
    further = torch.nn.functional.normalize(torch.randn(3, 3, 6, dtype=torch.float64), dim=-1)
    labels, further_labels = torch.tensor([0, 1, 2, 1]), torch.tensor([9, 1, 8])
    output = ContrastiveLoss()(query, torch.cat([passage, further]), labels, torch.cat([labels, further_labels]))
    every, every_labels = torch.cat([passage, further]), [0, 1, 2, 1, 9, 1, 8]
    scores = [[sum(max(float(q @ p) for p in b) for q in a) for b in every] for a in query]
    total = 0.0
    for row, own in zip(scores, labels.tolist(), strict=True):
        positives = [s for s, other in zip(row, every_labels, strict=True) if other == own]
        total -= sum(s - math.log(sum(map(math.exp, row))) for s in positives) / len(positives)
    assert output.query_to_passage.item() == pytest.approx(total / 4)
    # A further passage has no query to be found by: the way back is as without them.
    assert output.passage_to_query.item() == pytest.approx(
        ContrastiveLoss()(query, passage, labels).passage_to_query.item()
    )


def test_features_that_are_not_finite_are_told_by_row() -> None:
    query, passage = features(6)
    query[1, 0, 2], query[4, 1, 0] = math.nan, math.inf
    with pytest.raises(UserError, match=r"features of queries 1, 4 of 6 in this batch are not finite: .*optimizer\.lr"):
        ContrastiveLoss()(query, passage, torch.arange(6))
    query, passage = features(6)
    passage[3] = -math.inf
    with pytest.raises(UserError, match=r"features of passages 3 of 6 in this batch are not finite"):
        ContrastiveLoss()(query, passage, torch.arange(6))


def test_recall_of_random_features_is_that_of_chance() -> None:
    """The published code reports 0.629 here; a batch of 256 pairs has one positive among 256."""
    random = torch.Generator().manual_seed(0)
    query, passage = (torch.randn(256, 4, 16, generator=random) for _ in range(2))
    output = ContrastiveLoss()(query, passage, torch.arange(256))
    assert output.query_recall.item() < 0.03
    assert output.passage_recall.item() < 0.03


def _rank(rank: int, sizes: list[int], port: int, folder: str, symmetric: bool) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=len(sizes))
    query, passage = features(sum(sizes))
    labels = torch.arange(sum(sizes)) % 5
    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    # A map before the loss stands for the model; its gradient is what DDP would average.
    weight = torch.eye(6, dtype=torch.float64).requires_grad_()
    output = ContrastiveLoss(symmetric=symmetric)(query[own] @ weight, passage[own] @ weight, labels[own])
    output.loss.backward()
    torch.save(
        {"loss": output.loss.detach(), "recall": output.query_recall, "grad": weight.grad}, f"{folder}/{rank}.pt"
    )
    torch.distributed.destroy_process_group()


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [[4, 4], [5, 2, 4]])
@pytest.mark.parametrize("symmetric", [True, False])
def test_ranks_together_are_one_rank(sizes: list[int], symmetric: bool, tmp_path: Path) -> None:
    mp.spawn(_rank, args=(sizes, free_port(), str(tmp_path), symmetric), nprocs=len(sizes))
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(len(sizes))]
    query, passage = features(sum(sizes))
    weight = torch.eye(6, dtype=torch.float64).requires_grad_()
    alone = ContrastiveLoss(symmetric=symmetric)(query @ weight, passage @ weight, torch.arange(sum(sizes)) % 5)
    alone.loss.backward()
    for name, expected in (("loss", alone.loss.detach()), ("recall", alone.query_recall), ("grad", weight.grad)):
        mean = sum(part[name] for part in parts) / len(parts)
        torch.testing.assert_close(mean, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("symmetric", [True, False])
def test_of_no_pair_there_is_no_loss(symmetric: bool) -> None:
    query, passage = features(4)
    loss = ContrastiveLoss(symmetric, learn_temperature=True)
    with pytest.raises(ValueError, match=r"the batch is empty on every rank; leave it out, or set loss\.allow_empty"):
        loss(query[:0], passage[:0], torch.arange(0))
    loss.allow_empty = True  # as in training that leaves bad rows out
    output = loss(query[:0], passage[:0], torch.arange(0))
    assert (float(output.loss.detach()), output.pairs) == (0, 0)
    output.loss.backward()  # DDP waits for every gradient
    assert float(loss.log_temperature.grad) == 0


def test_what_does_not_fit_is_said() -> None:
    query, passage = features(4)
    with pytest.raises(ValueError, match="4 queries, 3 passages, 4 labels and 4 passage labels"):
        ContrastiveLoss()(query, passage[:3], torch.arange(4))
    with pytest.raises(ValueError, match="4 queries, 4 passages, 4 labels and 3 passage labels"):
        ContrastiveLoss()(query, passage, torch.arange(4), torch.arange(3))
    with pytest.raises(ConfigError, match=r"loss\.micro_batch=0 must be at least 1"):
        ContrastiveLoss(micro_batch=0)
    with pytest.raises(ValueError, match="passage_labels must begin with the labels of the queries, in their order"):
        ContrastiveLoss()(query, passage, torch.arange(4), torch.tensor([0, 1, 3, 2]))
    for temperature in (0, math.nan, math.inf):
        with pytest.raises(ConfigError, match=rf"loss\.temperature={temperature} must be positive, and finite"):
            ContrastiveLoss(temperature=temperature)
    with pytest.raises(ConfigError, match=r"loss\.backend=fast: choose one of auto, plain, chunked, fused"):
        ContrastiveLoss(backend="fast")

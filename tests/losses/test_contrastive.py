"""The contrastive loss compared with its definition in plain loops, and several ranks with one."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor

from ret_lightning.errors import ConfigError
from ret_lightning.losses import PADDING, ContrastiveLoss, EncodedBatch


def features(count: int, k: int = 3, width: int = 6) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(count)
    make = lambda: torch.nn.functional.normalize(  # noqa: E731
        torch.randn(count, k, width, generator=random, dtype=torch.float64), dim=-1
    )
    return make(), make()


@dataclass
class Share:
    """The rows of one rank: queries with their ids, one positive passage per query, and negatives with their ids."""

    query: Tensor
    ids: list[list[int]]
    passage: Tensor
    negative: Tensor
    negative_ids: list[int]

    def labels(self) -> Tensor:
        """Return the padded labels, (B, m), where m is the largest number of ids in this share."""
        width = max(map(len, self.ids), default=1)
        return torch.tensor([[*ids, *[PADDING] * (width - len(ids))] for ids in self.ids]).reshape(-1, width).long()

    def passage_labels(self) -> Tensor:
        return torch.tensor([*(ids[0] for ids in self.ids), *self.negative_ids]).long()

    def loss(self, map_of: Tensor | None = None, **options) -> tuple:
        """Return the output of `ContrastiveLoss` for features multiplied by a matrix, which represents the model."""
        vectors = (self.query, torch.cat([self.passage, self.negative]))
        query, passage = vectors if map_of is None else (each @ map_of for each in vectors)
        return ContrastiveLoss(**options)(EncodedBatch(query, passage, self.labels(), self.passage_labels()))


def shares(seed: int, sizes: Sequence[int], negatives: bool = True, most_ids: int = 4) -> list[Share]:
    """Return random rows for each rank.

    Id sets overlap, some ids belong to no passage, and the largest id set differs between ranks.
    """
    random, generator = Random(seed), torch.Generator().manual_seed(seed)

    def vectors(count: int) -> Tensor:
        values = torch.randn(count, 3, 6, generator=generator, dtype=torch.float64)
        return torch.nn.functional.normalize(values, dim=-1)

    made = []
    for rank, size in enumerate(sizes):
        ids = [random.sample(range(8), random.randint(1, max(1, most_ids - rank))) for _ in range(size)]
        # The first negative has the positive id of its own row, the others have any id.
        negative_ids = [ids[0][0], *(random.randrange(10) for _ in range(2 + rank))] if negatives and ids else []
        made.append(Share(vectors(size), ids, vectors(size), vectors(len(negative_ids)), negative_ids))
    return made


def joined(parts: Sequence[Share]) -> Share:
    """Concatenate the rows of all ranks."""
    return Share(
        torch.cat([part.query for part in parts]),
        [ids for part in parts for ids in part.ids],
        torch.cat([part.passage for part in parts]),
        torch.cat([part.negative for part in parts]),
        [name for part in parts for name in part.negative_ids],
    )


def by_loops(
    query: Tensor, passage: Tensor, ids: Sequence[Sequence[int]], passage_ids: Sequence[int], temperature: float = 1.0
) -> tuple[Tensor, Tensor, float, float]:
    """Compute both directions and both recalls from the definition, over sets of ids."""
    scores = [[sum((q @ p.T).max() for q in a) / temperature for p in passage] for a in query]

    def direction(rows: list[list[Tensor]], is_positive: Callable[[int, int], bool]) -> tuple[Tensor, float]:
        total, hits = torch.zeros((), dtype=torch.float64), 0
        for i, row in enumerate(rows):
            positives = [j for j in range(len(row)) if is_positive(i, j)]
            log_sum = sum(score.exp() for score in row).log()
            for j in positives:
                total = total - (row[j] - log_sum) / len(positives)
            values = [float(score.detach()) for score in row]
            hits += values.index(max(values)) in positives
        return total / len(rows), hits / len(rows)

    forward, recall = direction(scores, lambda i, j: passage_ids[j] in set(ids[i]))
    columns = [[scores[i][j] for i in range(len(query))] for j in range(len(query))]
    backward, back_recall = direction(columns, lambda j, i: passage_ids[j] in set(ids[i]))
    return forward, backward, recall, back_recall


def assert_is_loss_of(output, expected: tuple[Tensor, Tensor, float, float]) -> None:
    forward, backward, recall, back_recall = expected
    exact = {"rel": 1e-12}
    assert output.metrics["loss_query_to_passage"].item() == pytest.approx(forward.item(), **exact)
    assert output.metrics["loss_passage_to_query"].item() == pytest.approx(backward.item(), **exact)
    assert output.loss.item() == pytest.approx((forward + backward).item() / 2, **exact)
    assert output.metrics["query_recall@1"].item() == pytest.approx(recall)
    assert output.metrics["passage_recall@1"].item() == pytest.approx(back_recall)


@pytest.mark.parametrize("labels", [[0, 1, 2, 3, 4], [0, 1, 0, 2, 0], [7, 7, 7, 7, 7]])
@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_loss_with_one_label_per_query(labels: list[int], temperature: float) -> None:
    query, passage = features(5)
    output = ContrastiveLoss(temperature=temperature)(EncodedBatch(query, passage, torch.tensor(labels)))
    expected = by_loops(query, passage, [[label] for label in labels], labels, temperature)
    assert_is_loss_of(output, expected)
    one_way = ContrastiveLoss(symmetric=False, temperature=temperature)(
        EncodedBatch(query, passage, torch.tensor(labels))
    )
    assert one_way.loss.item() == pytest.approx(expected[0].item())
    assert sorted(one_way.metrics) == ["loss_query_to_passage", "query_recall@1"]


@pytest.mark.parametrize("negatives", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_loss_with_several_labels_per_query(seed: int, negatives: bool) -> None:
    (share,) = shares(seed, [7], negatives)
    expected_map, found_map = (torch.eye(6, dtype=torch.float64).requires_grad_() for _ in range(2))
    every = torch.cat([share.passage, share.negative])
    passage_ids = [*(ids[0] for ids in share.ids), *share.negative_ids]
    expected = by_loops(share.query @ expected_map, every @ expected_map, share.ids, passage_ids)
    output = share.loss(found_map)
    assert_is_loss_of(output, expected)
    output.loss.backward()
    ((expected[0] + expected[1]) / 2).backward()
    torch.testing.assert_close(found_map.grad, expected_map.grad, rtol=1e-10, atol=1e-12)


def test_passage_of_another_row_is_positive() -> None:
    """A has the ids p1 and p2, B has p2: A's target is spread over both passages, and B's passage has both queries."""
    query, passage = features(2)
    scores = (query[:, None, :, None] * passage[None, :, None]).sum(-1).max(-1).values.sum(-1)
    output = ContrastiveLoss()(EncodedBatch(query, passage, torch.tensor([[1, 2], [2, PADDING]])))
    rows, columns = scores.log_softmax(1), scores.log_softmax(0)
    torch.testing.assert_close(output.metrics["loss_query_to_passage"], -(rows[0].mean() + rows[1, 1]) / 2)
    torch.testing.assert_close(output.metrics["loss_passage_to_query"], -(columns[0, 0] + columns[:, 1].mean()) / 2)


def test_own_positive_among_negatives_is_positive() -> None:
    query, passage = features(3)
    further = passage[[0]] + 0.01
    labels = torch.tensor([[0, 5], [1, PADDING], [2, PADDING]])
    own, other = (
        ContrastiveLoss()(EncodedBatch(query, torch.cat([passage, further]), labels, torch.tensor([0, 1, 2, name])))
        for name in (5, 9)
    )
    scores = (query[0, :, None, None] * torch.cat([passage, further])[None]).sum(-1).max(-1).values.sum(0)
    log = scores.log_softmax(0)
    difference = 3 * (own.metrics["loss_query_to_passage"] - other.metrics["loss_query_to_passage"])
    torch.testing.assert_close(difference, log[0] - (log[0] + log[3]) / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_padding_does_not_change_loss(dtype: torch.dtype) -> None:
    def result(labels: Tensor) -> list[Tensor]:
        vectors = [side.to(dtype).requires_grad_() for side in features(9)]
        output = ContrastiveLoss(temperature=0.1)(EncodedBatch(*vectors, labels, torch.arange(9)))
        output.loss.backward()
        return [output.loss.detach(), *(side.grad for side in vectors)]

    padded = torch.full((9, 4), PADDING)
    padded[:, 0] = torch.arange(9)
    for one, other in zip(result(torch.arange(9)), result(padded), strict=True):
        assert torch.equal(one, other)


def test_single_vectors_are_scored_by_inner_product() -> None:
    query, passage = features(4, k=1)
    labels = torch.arange(4)
    pooled = ContrastiveLoss()(EncodedBatch(query[:, 0], passage[:, 0], labels)).loss
    logits = query[:, 0] @ passage[:, 0].T
    expected = (
        torch.nn.functional.cross_entropy(logits, labels) + torch.nn.functional.cross_entropy(logits.T, labels)
    ) / 2
    torch.testing.assert_close(pooled, expected)


@pytest.mark.parametrize("symmetric", [True, False])
def test_learned_temperature_has_gradient(symmetric: bool) -> None:
    query, passage = features(5)
    labels = torch.tensor([0, 1, 0, 2, 3])
    loss = ContrastiveLoss(symmetric, temperature=0.2, learn_temperature=True).double()
    assert [name for name, _ in loss.named_parameters()] == ["log_temperature"]
    assert list(ContrastiveLoss(temperature=0.2).parameters()) == []
    learned = loss(EncodedBatch(query, passage, labels)).loss
    learned.backward()

    def at(log_temperature: float) -> float:
        return ContrastiveLoss(symmetric, temperature=math.exp(log_temperature))(
            EncodedBatch(query, passage, labels)
        ).loss.item()

    assert learned.item() == pytest.approx(at(math.log(0.2)))
    slope = (at(math.log(0.2) + 1e-5) - at(math.log(0.2) - 1e-5)) / 2e-5
    assert loss.log_temperature.grad.item() == pytest.approx(slope, rel=1e-6)


def test_negatives_are_not_scored_as_rows() -> None:
    (share,) = shares(3, [6], negatives=True)
    without = Share(share.query, share.ids, share.passage, share.negative[:0], [])
    torch.testing.assert_close(
        share.loss().metrics["loss_passage_to_query"], without.loss().metrics["loss_passage_to_query"]
    )
    assert not torch.equal(
        share.loss().metrics["loss_query_to_passage"], without.loss().metrics["loss_query_to_passage"]
    )


def test_recall_of_random_features_is_at_chance() -> None:
    """The published code returns 0.629 here; chance is 1 / 256."""
    random = torch.Generator().manual_seed(0)
    query, passage = (torch.randn(256, 4, 16, generator=random) for _ in range(2))
    output = ContrastiveLoss()(EncodedBatch(query, passage, torch.arange(256)))
    assert output.metrics["query_recall@1"].item() < 0.03
    assert output.metrics["passage_recall@1"].item() < 0.03


# Rows of each rank; one of them may have none.
SIZES = ([4, 4], [5, 0], [5, 2, 4])
OPTIONS = [{"symmetric": symmetric} for symmetric in (True, False)]
SEEDS = (0, 1)


def outcome(share: Share, options: dict) -> dict[str, Tensor]:
    weight = torch.eye(6, dtype=torch.float64).requires_grad_()
    output = share.loss(weight, **options)
    output.loss.backward()
    recalls = [value for name, value in output.metrics.items() if "recall" in name]
    return {"loss": output.loss.detach(), "recall": torch.stack(recalls), "grad": weight.grad}


def _rank(rank: int, sizes: list[int], port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=len(sizes))
    found = [outcome(shares(seed, sizes)[rank], options) for seed in SEEDS for options in OPTIONS]
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_ranks_match_one_rank(sizes: list[int], tmp_path: Path) -> None:
    """Ranks have different numbers of rows, labels per row and negatives."""
    assert len({share.labels().shape[1] for share in shares(SEEDS[0], sizes)}) > 1
    mp.spawn(_rank, args=(sizes, free_port(), str(tmp_path)), nprocs=len(sizes))
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(len(sizes))]
    cases = [(seed, options) for seed in SEEDS for options in OPTIONS]
    for (seed, options), *of_ranks in zip(cases, *parts, strict=True):
        # DDP averages the gradients over ranks.
        for name, expected in outcome(joined(shares(seed, sizes)), options).items():
            mean = sum(part[name] for part in of_ranks) / len(of_ranks)
            torch.testing.assert_close(mean, expected, rtol=1e-6 if name == "recall" else 1e-11, atol=1e-12)


@pytest.mark.parametrize("symmetric", [True, False])
def test_empty_batch_has_zero_loss(symmetric: bool) -> None:
    query, passage = features(4)
    loss = ContrastiveLoss(symmetric, learn_temperature=True)
    output = loss(EncodedBatch(query[:0], passage[:0], torch.arange(0)))
    assert (float(output.loss.detach()), output.pairs) == (0, 0)
    names = ["loss_query_to_passage", "query_recall@1", *(["loss_passage_to_query", "passage_recall@1"] * symmetric)]
    assert list(output.metrics) == [*names, "temperature"]
    output.loss.backward()  # DDP waits for every gradient
    assert float(loss.log_temperature.grad) == 0


@pytest.mark.parametrize(
    ("labels", "passage_labels", "message"),
    [
        (torch.arange(4), torch.tensor([0, 1, 3, 2]), "first B entries are each a label of the query"),
        (torch.arange(8).view(4, 2), torch.tensor([0, 3, 5, 0]), "first B entries are each a label of the query"),
        (torch.tensor([0, 1, 2, PADDING]), None, "expected passage_labels >= 0"),
    ],
)
def test_inconsistent_labels_are_refused(labels: Tensor, passage_labels: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ContrastiveLoss()(EncodedBatch(*features(4), labels, passage_labels))


@pytest.mark.parametrize(
    ("code", "options"),
    [
        ("loss-temperature", {"temperature": 0}),
        ("loss-temperature", {"temperature": math.nan}),
        ("loss-temperature", {"temperature": math.inf}),
        ("loss-backend", {"backend": "fast"}),
    ],
)
def test_invalid_options_are_refused(code: str, options: dict) -> None:
    with pytest.raises(ConfigError) as error:
        ContrastiveLoss(**options)
    ((name, value),) = options.items()
    assert (error.value.code, error.value.key, error.value.found) == (code, f"loss.{name}", value)

"""Gradients and plain DDP for all variants of gate, sharing and trained part, with missing modalities."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from ret_lightning.errors import ConfigError
from ret_lightning.models import EncoderInput
from ret_lightning.models.gradient_cache import encode_in_micro_batches
from ret_lightning.models.layer_plans import Evenly, Explicit, FirstMiddleLast, Last
from tests.support.tiny_models import batch, make

GATES = ("lstm", "no_forget", "no_input", "none", "coupled", "scalar", "constant")
SHARING = {
    "two towers": {},
    "one tower": {"share_towers": True},
    "one cell": {"share_cells": True},
    "cell per step": {"cell_per_step": True},
    "shared cell per step": {"cell_per_step": True, "share_cells": True},
}
TRAINED = {"frozen": (False, False), "all": (True, True), "last blocks": (1, 2), "text only": (True, False)}
PLANS = (Last(), Evenly(2), FirstMiddleLast(), Explicit([0, 1], [0, 2]))


def loss(retriever: nn.Module, queries: EncoderInput, passages: EncoderInput) -> torch.Tensor:
    query, passage = retriever(queries, passages)
    return (query[:, :, None] * passage[:, None]).square().sum()


@pytest.mark.parametrize("trained", TRAINED.values(), ids=TRAINED)
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_empty_batch_has_zero_gradients(gate: str, trained: tuple, micro_batch: int | None) -> None:
    """DDP waits for a gradient of every trained parameter."""
    retriever = make(gate, {}, trained).train()
    empty = batch([1, 1], [1, 1]).slice(0, 0)
    queries, passages = encode_in_micro_batches(retriever, empty, empty, micro_batch)
    assert queries.shape == passages.shape == (0, 4, 8)
    (queries.sum() + passages.sum()).backward()
    for name, parameter in retriever.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert float(parameter.grad.abs().max()) == 0, name


@pytest.mark.parametrize("sharing", SHARING.values(), ids=SHARING)
@pytest.mark.parametrize("trained", TRAINED.values(), ids=TRAINED)
@pytest.mark.parametrize("gate", GATES)
def test_parameters_of_variants_get_gradients(gate: str, trained: tuple, sharing: dict) -> None:
    retriever = make(gate, sharing, trained).train()
    for has_text, has_image in (((1, 1, 0), (1, 0, 1)), ((1, 1, 1), (0, 0, 0)), ((0, 0, 0), (1, 1, 1))):
        retriever.zero_grad(set_to_none=True)
        loss(retriever, batch([*has_text], [*has_image]), batch([*has_text], [*has_image], seed=1)).backward()
        trainable = {n: p for n, p in retriever.named_parameters() if p.requires_grad}
        assert [n for n, p in trainable.items() if p.grad is None] == []
        if any(has_text) and any(has_image):
            # The bias of the keys shifts all logits of a softmax equally, so its gradient is rounding or zero.
            assert [n for n, p in trainable.items() if not p.grad.abs().sum() > 0 and "k_proj.bias" not in n] == []


@pytest.mark.parametrize("recurrence", PLANS, ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("pooled", [False, True])
def test_parameters_of_plans_get_gradients(recurrence, pooled: bool) -> None:
    retriever = make("lstm", {}, (True, True), recurrence, pooled=pooled).train()
    query, passage = retriever(batch([1, 1, 0], [1, 0, 1]), batch([1, 0, 1], [1, 1, 0], seed=1))
    (query * passage).square().sum().backward()
    dead = [n for n, p in retriever.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert [n for n in dead if "k_proj.bias" not in n] == []


def test_only_last_blocks_are_trained() -> None:
    retriever = make("lstm", {}, (1, 2), Explicit([0, 2], [0, 3])).train()
    for stack, used, trained in (
        (retriever.query_tower.text_backbone, 3, [2]),
        (retriever.query_tower.vision_backbone, 4, [2, 3]),
    ):
        with_gradients = [
            i for i in range(stack.num_blocks) if all(p.requires_grad for p in stack.block(i).parameters())
        ]
        assert with_gradients == trained
        assert not any(p.requires_grad for p in stack.embedding_parameters())
        in_training = [i for i in range(stack.num_blocks) if any(m.training for m in stack.block(i).modules())]
        assert in_training == trained
        inputs = torch.ones(2, 5, dtype=torch.int64) if used == 3 else torch.randn(2, 3, 16, 16)
        states = stack(inputs, range(used))
        assert [i for i, state in enumerate(states) if state.requires_grad] == trained


def test_partly_trained_backbone_has_same_gradients() -> None:
    torch.manual_seed(0)
    part, whole = make("lstm", {}, (1, 2)).eval(), make("lstm", {}, (True, True)).eval()
    whole.load_state_dict(part.state_dict())
    rows = batch([1, 1, 0], [1, 0, 1]), batch([1, 0, 1], [1, 1, 0], seed=1)
    for retriever in (part, whole):
        loss(retriever, *rows).backward()
    other = dict(whole.named_parameters())
    for name, parameter in part.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, other[name].grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("trained", "key", "found", "most"),
    [((4, False), "model.train_text", 4, 2), ((False, -1), "model.train_vision", -1, 3)],
)
def test_more_blocks_than_used_cannot_be_trained(trained: tuple, key: str, found: int, most: int) -> None:
    with pytest.raises(ConfigError) as error:
        make("lstm", {}, trained)
    assert error.value.code == "trained-blocks-out-of-range"
    assert (error.value.key, error.value.found, error.value.most) == (key, found, most)
    assert error.value.message.startswith(f"{key}={found}: ")


def _steps(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/barrier", rank=rank, world_size=2)
    variants = [
        *((gate, {}, (1, True)) for gate in GATES),
        *(("lstm", sharing, trained) for sharing, trained in itertools.product(SHARING.values(), TRAINED.values())),
    ]
    for number, (gate, sharing, trained) in enumerate(variants):
        torch.manual_seed(0)
        model = nn.parallel.DistributedDataParallel(make(gate, sharing, trained).train())
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
        # The second rank has no image in one step, no text in the next.
        for has_text, has_image in ([(1, 1), (1, 1)], [(1, 1), (0, 0)], [(0, 0), (1, 1)], [(1, 0), (0, 1)]):
            lacking = rank == 1
            text, image = (has_text, has_image) if lacking else ((1, 1), (1, 1))
            optimizer.zero_grad()
            loss(model, batch([*text], [*image], seed=rank), batch([*text], [*image], seed=10 + rank)).backward()
            optimizer.step()
        torch.save({n: p.detach() for n, p in model.module.named_parameters()}, Path(folder) / f"{number}_{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_plain_ddp_supports_all_variants(tmp_path: Path) -> None:
    """Without `find_unused_parameters`, a parameter without a gradient raises an error in the next step."""
    mp.spawn(_steps, args=(str(tmp_path),), nprocs=2)
    files = sorted(tmp_path.glob("*_0.pt"))
    assert len(files) == len(GATES) + len(SHARING) * len(TRAINED)
    for file in files:
        first, second = (torch.load(f, weights_only=True) for f in (file, Path(str(file).replace("_0.pt", "_1.pt"))))
        assert all(torch.equal(first[name], second[name]) for name in first), file.name

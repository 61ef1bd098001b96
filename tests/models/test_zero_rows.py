"""A rank without usable rows: no attention over zero rows, and a zero gradient for every trained parameter."""

from __future__ import annotations

import pytest
import torch
from torch.overrides import TorchFunctionMode

from ret_lightning.models import EncoderInput
from ret_lightning.models.gradient_cache import encode_in_micro_batches
from tests.support.fake_cuda import fake_cuda, move_to_cuda
from tests.support.tiny_models import batch, make

GATES = ["lstm", "no_forget", "no_input", "none", "coupled", "scalar", "constant"]


class Attentions(TorchFunctionMode):
    """Records the number of rows of each attention; the flash attention of a GPU refuses zero rows."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if "scaled_dot_product" in getattr(func, "__name__", ""):
            self.rows.append(len(args[0]))
        return func(*args, **(kwargs or {}))


def inputs(rows: int) -> EncoderInput:
    return batch([1] * 3, [1] * 3).slice(0, rows)


@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("sharing", [{}, {"share_towers": True}], ids=["two towers", "one tower"])
def test_no_rows_have_zero_gradients(gate: str, sharing: dict, mixed: bool) -> None:
    retriever = make(gate, sharing, (True, 2), dropout=0.1, attention_dropout=0.1).train()
    with Attentions() as seen, torch.autocast("cpu", torch.bfloat16, enabled=mixed, cache_enabled=False):
        query, passage = retriever(inputs(0), inputs(0))
        (query.sum() + passage.sum()).backward()
    assert query.shape == passage.shape == (0, 4, 8)
    assert query.dtype == torch.float32
    assert seen.rows == []
    assert {name for name, p in retriever.named_parameters() if p.requires_grad and p.grad is None} == set()
    assert all(not p.grad.any() for p in retriever.parameters() if p.requires_grad)


def test_attentions_are_seen() -> None:
    retriever = make("lstm", {}, (False, False))
    with Attentions() as seen, torch.no_grad():
        retriever(inputs(2), inputs(3))
    assert {2, 3, 5} == set(seen.rows)


def test_more_micro_batches_than_rows() -> None:
    """A micro-batch of a side without rows."""
    retriever = make("lstm", {}, (False, False))
    with Attentions() as seen:
        query, passage = encode_in_micro_batches(retriever, inputs(3), inputs(1), 1)
        (query.sum() + passage.sum()).backward()
    assert (len(query), len(passage)) == (3, 1)
    assert 0 not in seen.rows
    assert all(p.grad is not None for p in retriever.parameters() if p.requires_grad)


@pytest.mark.parametrize("gate", GATES)
def test_no_rows_on_fake_gpu(gate: str) -> None:
    """Under autocast as Lightning enters it."""
    with fake_cuda():
        retriever = make(gate, {}, (False, False)).train()
        move_to_cuda(retriever)
        rows = EncoderInput(
            torch.zeros(0, 7, dtype=torch.long),
            torch.zeros(0, 7, dtype=torch.bool),
            torch.zeros(0, 3, 16, 16),
            torch.zeros(0, dtype=torch.long),
            torch.zeros(0, dtype=torch.long),
        ).to("cuda")
        autocast = torch.autocast("cuda", torch.bfloat16, cache_enabled=False)
        with Attentions() as seen, torch.no_grad(), autocast:
            query, passage = retriever(rows, rows)
    assert query.is_cuda
    assert passage.is_cuda
    assert query.shape == passage.shape == (0, 4, 8)
    assert seen.rows == []

"""Compiled blocks produce the same gradients under the same names, with few graphs for all combinations of modalities."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from itertools import product

import pytest
import torch
from torch._dynamo.utils import counters

from ret_lightning.models import EncoderInput, RetRetriever
from ret_lightning.models.compile_blocks import RECOMPILE_LIMIT, compile_blocks
from tests.support.tiny_models import NO_DROPOUT, PASSAGES, QUERIES, batch

# Dynamo reads attributes of tensors that warn.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

# Rows of a batch that have the modality: all, all but one, or none.
PRESENCE = (lambda rows: [1] * rows, lambda rows: [0] + [1] * (rows - 1), lambda rows: [0] * rows)


@pytest.fixture(autouse=True)
def graphs() -> Iterator[list[torch.fx.GraphModule]]:
    """Return the list to which `compiled_copy` appends the graphs; graphs of other tests are not reused."""
    torch._dynamo.reset()
    counters.clear()
    yield []
    torch._dynamo.reset()


def compiled_copy(retriever: RetRetriever, graphs: list[torch.fx.GraphModule]) -> RetRetriever:
    """Return a copy whose graphs are recorded and run without a compiler."""

    def backend(graph: torch.fx.GraphModule, inputs: list) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compiled = copy.deepcopy(retriever)
    compile_blocks(compiled, backend=backend)
    return compiled


def all_batches(rows: int) -> Iterator[tuple[EncoderInput, EncoderInput]]:
    """Yield queries and passages for each combination of missing modalities."""
    for text, image in product(PRESENCE, PRESENCE):
        queries = batch(text(rows), image(rows))
        yield queries, batch(image(rows), text(rows), length=5, seed=1)


def test_compiled_blocks_match_eager_blocks(make_retriever, graphs) -> None:
    plain = make_retriever(**NO_DROPOUT, train_text=True, train_vision=True)
    compiled = compiled_copy(plain, graphs)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    for rows in (7, 4):
        for retriever in (plain, compiled):
            retriever.zero_grad()
            query, passage = retriever(QUERIES.slice(0, rows), PASSAGES.slice(0, rows))
            (query * passage).square().sum().backward()
        for (name, left), right in zip(plain.named_parameters(), compiled.parameters(), strict=True):
            torch.testing.assert_close(left.grad, right.grad, rtol=1e-4, atol=1e-6, msg=name)
    assert graphs


# Graphs of the cell in training or inference: self-attention, cross-attention to texts and to images, and the update. Those of
# the backbones: a text block and a vision block. Batches of one row need further ones.
@pytest.mark.parametrize(("sizes", "most"), [((9, 12), 12), ((9, 1), 32)])
def test_missing_modalities_need_no_further_graphs(make_retriever, graphs, sizes: tuple[int, ...], most: int) -> None:
    plain = make_retriever(**NO_DROPOUT)
    compiled = compiled_copy(plain, graphs)
    for retriever in (plain, compiled):
        retriever.train()
    autocast = torch.autocast("cpu", torch.bfloat16, cache_enabled=False)  # as Lightning enters it
    for rows in sizes:
        for queries, passages in all_batches(rows):
            with autocast:
                for left, right in zip(plain(queries, passages), compiled(queries, passages), strict=True):
                    torch.testing.assert_close(left, right, rtol=1e-2, atol=1e-2)
                    (right * torch.arange(8)).sum().backward(retain_graph=True)
    assert all(p.grad is not None for p in compiled.parameters() if p.requires_grad)
    assert 0 < len(graphs) <= most // 2
    compiled.eval()
    with autocast, torch.inference_mode():
        for rows in sizes:
            for queries, passages in all_batches(rows):
                assert compiled.encode("query", queries).isfinite().all()
                assert compiled.encode("passage", passages).isfinite().all()
    assert len(graphs) <= most
    frames = counters["frames"]
    assert frames["ok"] == frames["total"] > 0  # after too many graphs, a function runs without being compiled


def test_limit_is_set_for_the_compiled_functions(make_retriever, monkeypatch: pytest.MonkeyPatch) -> None:
    options: list[dict] = []
    signature = inspect.signature(torch.compile)

    def record(model=None, **given):
        options.append(given)
        return model

    record.__signature__ = signature
    monkeypatch.setattr(torch, "compile", record)
    compile_blocks(make_retriever())
    assert {each["recompile_limit"] for each in options} == {RECOMPILE_LIMIT}
    assert {each["dynamic"] for each in options} == {True}


def test_copies_of_a_compiled_model_are_not_compiled(make_retriever, graphs) -> None:
    compiled = compiled_copy(make_retriever(**NO_DROPOUT).eval(), graphs)
    copied = copy.deepcopy(compiled)
    with torch.no_grad():
        expected = compiled.encode("query", QUERIES)
        known = len(graphs)
        torch.nn.init.zeros_(compiled.query_tower.output.weight)
        assert torch.allclose(copied.encode("query", QUERIES), expected, atol=1e-6)
    assert len(graphs) == known > 0

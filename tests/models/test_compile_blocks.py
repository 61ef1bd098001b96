"""Compiled blocks produce the same gradients under the same names."""

from __future__ import annotations

import pytest
import torch

from ret_lightning.models.compile_blocks import compile_blocks
from tests.support.tiny_models import NO_DROPOUT, PASSAGES, QUERIES


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_blocks_match_eager_blocks(make_retriever) -> None:
    options = {**NO_DROPOUT, "train_text": True, "train_vision": True}
    plain, compiled = make_retriever(**options), make_retriever(**options)
    compiled.load_state_dict(plain.state_dict())
    calls = []

    def backend(graph: torch.fx.GraphModule, inputs: list) -> torch.fx.GraphModule:
        calls.append(graph)
        return graph

    compile_blocks(compiled, backend=backend)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    for rows in (7, 4):
        for retriever in (plain, compiled):
            retriever.zero_grad()
            query, passage = retriever(QUERIES.slice(0, rows), PASSAGES.slice(0, rows))
            (query * passage).square().sum().backward()
        for (name, left), right in zip(plain.named_parameters(), compiled.parameters(), strict=True):
            torch.testing.assert_close(left.grad, right.grad, rtol=1e-4, atol=1e-6, msg=name)
    assert calls

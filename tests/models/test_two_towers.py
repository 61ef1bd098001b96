"""Two towers over shared backbones, compared with each tower alone."""

from __future__ import annotations

import torch

from tests.support.backbone_counter import Counter
from tests.support.tiny_models import batch


def test_shared_backbones_run_once(make_retriever) -> None:
    retriever = make_retriever().eval()
    counter = Counter(retriever)
    retriever(batch([1, 0, 1], [1, 1, 0]), batch([1, 1, 1], [0, 0, 1], length=5, seed=1))
    assert counter.rows == {"text": [2 + 3], "vision": [2 + 1]}


def test_forward_normalises_both_towers(make_retriever) -> None:
    retriever = make_retriever().eval()
    queries, passages = batch([1, 0, 1], [1, 1, 0]), batch([1, 1], [0, 1], length=5, seed=1)
    query, passage = retriever(queries, passages)
    for got, tower, rows in ((query, retriever.query_tower, queries), (passage, retriever.passage_tower, passages)):
        alone = tower(rows)
        torch.testing.assert_close(got, alone / alone.norm(dim=-1, keepdim=True), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(retriever.encode("query", queries), query, rtol=1e-5, atol=1e-5)

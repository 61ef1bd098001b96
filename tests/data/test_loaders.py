"""Tests of the data loaders over rows."""

from __future__ import annotations

import torch

from ret_lightning.data.batch import EvaluationBatch
from ret_lightning.data.loaders import make_evaluation_loader, make_evaluation_loaders, make_row_loader
from ret_lightning.data.rows import Passage
from ret_lightning.data.torch_datasets import Collator, EvaluationRows
from ret_lightning.inputs import ClipTokenizer


def test_loader_does_not_use_global_random_state() -> None:
    before = torch.get_rng_state()
    assert list(make_row_loader([3, 4, 5], [[2, 0], [1]], list)) == [[5, 3], [4]]
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_load_the_same_batches() -> None:
    one, other = (list(make_row_loader(range(9), [[8], [1, 2]], list, num_workers=n)) for n in (0, 1))
    assert one == other == [[8], [1, 2]]


def test_evaluation_batches_have_subset_and_side() -> None:
    rows = EvaluationRows([Passage(f"p{i}", f"text {i}") for i in range(5)], None, "wit", "passage")
    batches = list(make_evaluation_loader(rows, [[4, 1], [0]], Collator(ClipTokenizer(), 16), is_repeated=True))
    assert all(isinstance(batch, EvaluationBatch) for batch in batches)
    assert [batch.rows.tolist() for batch in batches] == [[4, 1], [0]]
    assert {(batch.subset, batch.side, batch.is_repeated) for batch in batches} == {("wit", "passage", True)}


def test_idle_rank_repeats_first_row() -> None:
    files = [
        EvaluationRows([Passage(f"{side}{i}", f"text {i}") for i in range(3)], None, "wit", side)
        for side in ("passage", "query")
    ]
    for batches, rows, is_repeated in (([[[1]], [[2]]], [[1], [2]], False), ([[], []], [[0]], True)):
        loaders = make_evaluation_loaders(files, batches, Collator(ClipTokenizer(), 16))
        found = [batch for loader in loaders for batch in loader]
        assert [batch.rows.tolist() for batch in found] == rows
        assert {batch.is_repeated for batch in found} == {is_repeated}

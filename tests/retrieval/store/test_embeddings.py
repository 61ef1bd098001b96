from __future__ import annotations

import pytest
import torch

from ret_lightning.retrieval import Embeddings


def test_ids_and_length():
    passages = Embeddings(["a", "b"], torch.zeros(2, 3, 4))
    assert passages.ids == ("a", "b")
    assert len(passages) == 2


def test_float16_and_empty_embeddings():
    assert len(Embeddings(["a"], torch.zeros(1, 3, 4, dtype=torch.float16))) == 1
    assert len(Embeddings([], torch.zeros(0, 3, 4))) == 0


def test_duplicate_id_is_reported_with_count():
    with pytest.raises(ValueError, match=r"^Embeddings: id 'b' occurs 3 times; ids must be unique$"):
        Embeddings(["a", "b", "b", "c", "b"], torch.zeros(5, 1, 4))


@pytest.mark.parametrize(
    ("ids", "vectors", "message"),
    [
        (["a"], torch.zeros(1, 4), r"shape \(N, k, d\).*got \(1, 4\)"),
        (["a"], torch.zeros(1, 0, 4), r"k and d above 0, got \(1, 0, 4\)"),
        (["a"], torch.zeros(1, 2, 4, dtype=torch.bfloat16), "float32 or float16 vectors, got torch.bfloat16"),
        (["a", "b"], torch.zeros(1, 2, 4), "got 2 ids and 1 rows"),
        (["a", 7], torch.zeros(2, 2, 4), "id 7 of row 1: expected str, got int"),
        ("ab", torch.zeros(2, 2, 4), "got one string"),
    ],
)
def test_invalid_embeddings_are_rejected(ids, vectors, message):
    with pytest.raises(ValueError, match=message):
        Embeddings(ids, vectors)


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_items_that_are_not_finite_are_reported(number):
    vectors = torch.zeros(4, 2, 3)
    vectors[1, 1, 2] = number
    vectors[3, 0, 0] = number
    with pytest.raises(ValueError, match="2 of 4 items are not finite, the first is 'b'"):
        Embeddings(["a", "b", "c", "d"], vectors)

"""Encoding of rows to index or to answer, and the count of their texts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ret_lightning import RetRetriever
from ret_lightning.data.readers.source_location import SourceLocation
from ret_lightning.data.rows import Passage, Query
from ret_lightning.inputs.truncated_texts import TextCount
from ret_lightning.search.encoded_rows import encode_batches
from tests.support.tiny_training import make_module


@pytest.fixture(scope="module")
def retriever() -> RetRetriever:
    return make_module().retriever.eval()


def test_texts_are_counted(retriever: RetRetriever) -> None:
    texts = TextCount()
    location = SourceLocation(Path("a.jsonl"), 1)
    rows = [Passage(f"p{i}", text, None, None, location) for i, text in enumerate(("short", "word " * 100, "x"))]
    list(encode_batches(retriever, rows, None, 2, 0, progress=False, texts=texts))
    assert (texts.texts, texts.truncated, texts.limit) == (3, 1, 77)


def test_no_rows_yield_no_batch(retriever: RetRetriever) -> None:
    assert list(encode_batches(retriever, [], None, 2, 0)) == []


def test_rows_determine_side(retriever: RetRetriever) -> None:
    location = SourceLocation(Path("a.jsonl"), 1)
    query = Query("q", None, "what?", None, None, (), (), None, location)
    (encoded_query,) = encode_batches(retriever, [query], None, 8, 0, progress=False)
    (encoded_passage,) = encode_batches(
        retriever, [Passage("p", "what?", None, None, location)], None, 8, 0, progress=False
    )
    torch.testing.assert_close(encoded_query, retriever.encode_queries([("what?", None)]))
    torch.testing.assert_close(encoded_passage, retriever.encode_passages([("what?", None)]))
    assert not torch.allclose(encoded_query, encoded_passage)

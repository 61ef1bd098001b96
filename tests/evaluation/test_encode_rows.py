"""Encoding of rows, compared with the tower on one row at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ret_lightning import RetRetriever
from ret_lightning.data.images.sources import ImageReader, image_source
from ret_lightning.data.readers.source_location import SourceLocation
from ret_lightning.data.rows import Passage, Query
from ret_lightning.data.torch_datasets import EvaluationRows
from ret_lightning.errors import DataError
from ret_lightning.evaluation.encode_rows import encode_rows
from ret_lightning.inputs import Item, collate_items
from tests.support.tiny_training import make_module


@pytest.fixture(scope="module")
def retriever() -> RetRetriever:
    return make_module().retriever.eval()


@pytest.fixture
def passages(tmp_path: Path) -> list[Passage]:
    """Passages with text, image, or both."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 20, 20, 3), dtype=np.uint8)
    for number in range(2):
        Image.fromarray(pixels[number]).save(tmp_path / f"{number}.png")
    contents = [("a fact", None), ("another, longer fact", "0.png"), (None, "1.png"), ("x", None), ("y z", None)]
    return [
        Passage(f"p{i}", text, image, None, SourceLocation(Path("a.jsonl"), i + 1))
        for i, (text, image) in enumerate(contents)
    ]


def encode_single(retriever: RetRetriever, side: str, row: Passage | Query, folder: Path) -> torch.Tensor:
    tower = getattr(retriever, f"{side}_tower")
    pixels = None
    if row.image_path is not None:
        with Image.open(folder / row.image_path) as image:
            pixels = tower.image_transform(image.convert("RGB"))
    inputs = collate_items([Item(row.text, pixels)], tower.tokenizer, tower.image_transform.size)
    with torch.inference_mode():
        return retriever.encode(side, inputs)[0]


def rows_of(rows: list, side: str, folder: Path, retriever: RetRetriever) -> EvaluationRows:
    return EvaluationRows(rows, ImageReader(image_source(folder), retriever.query_tower.image_transform), "wit", side)


def test_vectors_match_single_row_encoding(retriever: RetRetriever, passages: list[Passage], tmp_path: Path) -> None:
    found = list(
        encode_rows(retriever, rows_of(passages, "passage", tmp_path, retriever), batch_size=2, progress=False)
    )
    assert [batch.rows.tolist() for batch, _ in found] == [[0, 1], [2, 3], [4]]
    assert {(batch.subset, batch.side) for batch, _ in found} == {("wit", "passage")}
    vectors = torch.cat([vectors for _, vectors in found])
    expected = torch.stack([encode_single(retriever, "passage", row, tmp_path) for row in passages])
    torch.testing.assert_close(vectors, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(vectors.norm(dim=2), torch.ones(5, vectors.shape[1]))


def test_only_given_batches_are_encoded(retriever: RetRetriever, passages: list[Passage], tmp_path: Path) -> None:
    rows = rows_of(passages, "passage", tmp_path, retriever)
    complete = torch.cat([vectors for _, vectors in encode_rows(retriever, rows, batch_size=5, progress=False)])
    ((batch, vectors),) = encode_rows(retriever, rows, [[3, 1]], progress=False)
    assert batch.rows.tolist() == [3, 1]
    torch.testing.assert_close(vectors, complete[[3, 1]], atol=1e-5, rtol=0)
    assert list(encode_rows(retriever, rows, [])) == []


def test_queries_use_the_query_tower(retriever: RetRetriever, tmp_path: Path) -> None:
    query = Query("q", "Find:", "what?", None, None, (), (), None, SourceLocation(Path("q.jsonl"), 1))
    ((_, vectors),) = encode_rows(retriever, rows_of([query], "query", tmp_path, retriever), progress=False)
    torch.testing.assert_close(vectors[0], encode_single(retriever, "query", query, tmp_path), atol=1e-5, rtol=0)


def test_missing_image_is_raised(retriever: RetRetriever, passages: list[Passage], tmp_path: Path) -> None:
    (tmp_path / "1.png").unlink()
    with pytest.raises(DataError) as error:
        list(encode_rows(retriever, rows_of(passages, "passage", tmp_path, retriever), progress=False))
    assert error.value.kind == "missing_image"
    assert "a.jsonl:3" in error.value.message


def test_nonfinite_vectors_report_their_row(passages: list[Passage], tmp_path: Path, monkeypatch) -> None:
    retriever = make_module().retriever.eval()
    encode = retriever.encode

    def broken(side: str, inputs: object) -> torch.Tensor:
        vectors = encode(side, inputs).clone()
        if len(inputs.image_rows) == 1 and 0 in inputs.image_rows.tolist():  # the second batch
            vectors[1, 0, 0] = torch.nan
        return vectors

    monkeypatch.setattr(retriever, "encode", broken)
    rows = rows_of(passages, "passage", tmp_path, retriever)
    with pytest.raises(DataError) as error:
        list(encode_rows(retriever, rows, batch_size=2, dtype="bfloat16", progress=False))
    assert (error.value.code, error.value.line) == ("row-vectors-not-finite", 4)
    assert "dtype=bfloat16" in error.value.message

"""Tests of the datasets and the collator: labels, negatives, augmentation and bad rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ret_lightning import M2KRDataModule
from ret_lightning.data.bad_rows import BadRow
from ret_lightning.data.batch import label
from ret_lightning.data.layouts.subset_names import SubsetNames
from ret_lightning.data.readers.source_location import SourceLocation
from ret_lightning.data.rows import Passage, Query
from ret_lightning.data.sampling.batch_samplers import SampledRow
from ret_lightning.data.torch_datasets import Collator, EvaluationRows, TrainingItem, TrainingRows
from ret_lightning.errors import DataError
from ret_lightning.inputs import ClipTokenizer, ImageTransform, Item
from ret_lightning.losses import PADDING
from tests.support.m2kr_folder import write_folder, write_lines
from tests.support.row_files import jsonl_files


@pytest.mark.parametrize(("limit", "count"), [(None, 3), (2, 2), (0, 0)])
def test_negatives_follow_all_positives(tmp_path: Path, limit: int | None, count: int) -> None:
    root = write_folder(tmp_path, training_rows=4)
    file = root / "jsonl/m2kr/train/m2kr_up_train.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[1]["negative_passages"] = [{"passage_id": f"n{i}", "passage_text": f"Negative {i}."} for i in range(3)]
    write_lines(file, rows)
    data = M2KRDataModule(root, ClipTokenizer(), ImageTransform(16), batch_size=4, negatives=limit, validation="test")
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert len(batch) == len(batch.queries) == 4
    assert len(batch.passages) == len(batch.passage_labels) == 4 + count
    assert batch.passage_labels[:4].tolist() == batch.labels[:, 0].tolist()
    subset = rows[1]["data_id"].split("_")[0].lower()
    assert set(batch.passage_labels[4:].tolist()) <= {label(subset, f"n{i}") for i in range(3)}
    again = M2KRDataModule(
        root, ClipTokenizer(), ImageTransform(16), batch_size=4, negatives=limit, validation="test", num_workers=1
    )
    again.setup("fit")
    assert torch.equal(next(iter(again.train_dataloader())).passage_labels, batch.passage_labels)


TEXT = Item("text", None)


def item(*labels: int, negatives: tuple[int, ...] = ()) -> TrainingItem:
    passage_labels = (labels[0], *negatives)
    return TrainingItem(TEXT, (TEXT,) * len(passage_labels), labels, passage_labels, "wit")


@pytest.mark.parametrize(
    ("items", "labels", "passage_labels"),
    [
        ([item(7), item(8)], [[7], [8]], [7, 8]),
        (
            [item(7, 1, 2, negatives=(5,)), item(8, 9)],
            [[7, 1, 2], [8, 9, PADDING]],
            [7, 8, 5],
        ),
        ([], [], []),
    ],
)
def test_collated_labels(items: list[TrainingItem], labels: list, passage_labels: list) -> None:
    batch = Collator(ClipTokenizer(), 16).training(items)
    assert (batch.labels.dtype, batch.labels.dim(), batch.labels.tolist()) == (torch.int64, 2, labels)
    assert batch.passage_labels.tolist() == passage_labels
    assert len(batch) == len(items)
    moved = batch.to("meta")
    assert (moved.labels.shape, moved.passage_labels.shape) == (batch.labels.shape, batch.passage_labels.shape)
    assert {tensor.device.type for tensor in (moved.labels, moved.passage_labels, moved.queries.input_ids)} == {"meta"}


def pixels_of(image: str | bytes, location: SourceLocation, subset: str, augment: object = None) -> torch.Tensor:
    """Replace an `ImageReader`: all pixels have the number in the name of the image."""
    if image == "broken.png":
        raise DataError(f"{location}: cannot be read", "unreadable_image", code="test-image")
    pixels = torch.full((3, 16, 16), float(image.removesuffix(".png")))
    return pixels if augment is None else augment(pixels)


def training_rows(path: Path, rows: list[dict | str], **options: object) -> tuple[TrainingRows, list[SampledRow]]:
    files = jsonl_files(path, rows)
    raw = [row for part in files.spans() for row in files.read(part)]
    return TrainingRows(files, pixels_of, SubsetNames(["wit"]), **options), [SampledRow(0, row) for row in raw]


ROW = {"data_id": "wit_1", "question": "q?", "image_path": "1.png", "passage_id": ["a", "b"], "passage_text": "A."}


def test_training_item_is_the_row(tmp_path: Path) -> None:
    negatives = [{"passage_id": "n", "passage_text": None, "passage_image_path": "2.png"}]
    rows, (sample,) = training_rows(tmp_path / "a.jsonl", [ROW | {"negative_passages": negatives}])
    found = rows[sample]
    assert (found.query.text, found.query.pixels.mean().item()) == ("q?", 1.0)
    assert [(each.text, None if each.pixels is None else each.pixels.mean().item()) for each in found.passages] == [
        ("A.", None),
        (None, 2.0),
    ]
    assert found.labels == (label("wit", "a"), label("wit", "b"))
    assert found.passage_labels == (label("wit", "a"), label("wit", "n"))
    assert found.subset == "wit"


def test_augmentation_is_seeded_by_the_sample(tmp_path: Path) -> None:
    def noise(pixels: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
        return pixels + random.random()

    rows, (sample,) = training_rows(tmp_path / "a.jsonl", [ROW], augmentation=noise, seed=1)
    again = training_rows(tmp_path / "a.jsonl", [ROW], augmentation=noise, seed=1)[0]
    other = training_rows(tmp_path / "a.jsonl", [ROW], augmentation=noise, seed=2)[0]
    first = rows[sample].query.pixels
    assert torch.equal(first, again[sample].query.pixels)
    assert not torch.equal(first, other[sample].query.pixels)
    assert not torch.equal(first, rows[sample._replace(epoch=1)].query.pixels)


def test_bad_training_row_is_raised_or_returned(tmp_path: Path) -> None:
    content = ["{", ROW | {"image_path": "broken.png"}, ROW]
    rows, samples = training_rows(tmp_path / "a.jsonl", content)
    for sample in samples[:2]:
        with pytest.raises(DataError):
            rows[sample]
    rows, samples = training_rows(tmp_path / "a.jsonl", content, on_bad_row="skip")
    items = [rows[sample] for sample in samples]
    assert [row.kind if isinstance(row, BadRow) else None for row in items] == ["bad_json", "unreadable_image", None]
    assert [row.message.partition(": ")[0] for row in items[:2]] == [f"{tmp_path}/a.jsonl:{line}" for line in (2, 3)]
    batch = Collator(ClipTokenizer(), 16).training(items)
    assert (len(batch), batch.bad_rows) == (1, tuple(items[:2]))


def test_unreadable_image_of_evaluation_row_is_skipped() -> None:
    passages = [Passage(f"p{i}", f"text {i}", name, None, SourceLocation(Path("a.jsonl"), i + 1)) for i, name in enumerate(
        ("3.png", "broken.png", None)
    )]  # fmt: skip
    with pytest.raises(DataError):
        EvaluationRows(passages, pixels_of, "wit", "passage")[1]
    rows = EvaluationRows(passages, pixels_of, "wit", "passage", on_bad_row="skip")
    batch = Collator(ClipTokenizer(), 16).evaluation([rows[i] for i in (2, 1, 0)], "wit", "passage")
    assert len(rows) == 3
    assert batch.rows.tolist() == [2, 1, 0]
    assert batch.imageless == (1,)
    assert [row.kind for row in batch.bad_images] == ["unreadable_image"]
    assert batch.inputs.image_rows.tolist() == [2]
    assert batch.inputs.text_rows.tolist() == [0, 1, 2]
    assert (batch.texts.texts, batch.texts.truncated) == (3, 0)


@pytest.mark.parametrize("empty", [{"image_path": ""}, {"image_bytes": b""}])
def test_empty_image_is_no_image(empty: dict[str, str | bytes]) -> None:
    def read_image(*_: object) -> torch.Tensor:
        raise AssertionError("there is no image to read")

    rows = EvaluationRows([Query("q", "A text.", **empty)], read_image, "wit", "query")
    assert rows[0] == (Item("A text.", None), 0, None)
    assert rows.rows[0].image is None

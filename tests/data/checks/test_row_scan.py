"""Scans of rows and images."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ret_lightning.data.batch import hash_text
from ret_lightning.data.checks.row_scan import (
    NO_IMAGE,
    ONE_COLOUR,
    SAMPLED,
    ImageScan,
    NoTransform,
    RowScan,
    ScanResult,
    SideCounts,
    hash_image_path,
)
from ret_lightning.data.images.sources import ImageReader, image_source
from ret_lightning.data.layouts.subset_names import SubsetNames
from ret_lightning.data.readers.row_files import RowFiles
from ret_lightning.data.readers.source_location import SourceLocation
from ret_lightning.data.rows import Passage
from tests.support.m2kr_folder import passage, query, write_lines

LOCATION = SourceLocation(Path("a.jsonl"), 1)


def scanned(path: Path, rows: Sequence[dict | str], role: str, subset: object = "wit", **options: object) -> ScanResult:
    write_lines(path, rows)
    files = RowFiles([path])
    (span,) = files.spans()
    return RowScan(files, span, role, subset, options.get("reader"), bool(options.get("sampled", True)))()


def reader(folder: Path) -> ImageReader:
    return ImageReader(image_source(str(folder)), NoTransform(None))


def png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_scan_of_queries(tmp_path: Path) -> None:
    rows = [query("okvqa", i) for i in range(8)]
    result = scanned(tmp_path / "a.jsonl", rows, "queries", "okvqa")
    assert (result.rows.rows, result.rows.bad, result.broken) == (8, 0, None)
    assert result.data_id_texts == [row["data_id"] for row in rows]
    assert result.data_ids.tolist() == [hash_text(row["data_id"]) for row in rows]
    assert result.positives == [
        tuple(row["passage_id"]) if isinstance(row["passage_id"], list) else (row["passage_id"],) for row in rows
    ]
    starts = np.cumsum([0, *(len(json.dumps(row)) + 1 for row in rows)])
    assert result.positions.tolist() == starts[:-1].tolist()
    assert result.query_images.tolist() == [
        NO_IMAGE if row["image_path"] is None else hash_image_path(row["image_path"]) for row in rows
    ]
    counts = result.sides["okvqa", "query"]
    texts = [f"{row['instruction']} {row['question']}" for row in rows]
    assert (counts.rows, counts.with_text, counts.with_image) == (8, 8, 6)
    assert (counts.characters, counts.sample) == (sum(map(len, texts)), texts)


def test_scan_of_pool(tmp_path: Path) -> None:
    rows = [passage("okvqa", 1), passage("okvqa", 2) | {"passage_id": "two"}, passage("okvqa", 3)]
    rows.append({"passage_id": 9, "passage_text": None, "passage_image_path": None})
    result = scanned(tmp_path / "a.jsonl", rows, "pool", "okvqa", sampled=False)
    assert result.passage_ids == ["1", "two", "3", "9"]
    assert result.number_ids == 3
    assert {path: location.line for path, _, location in result.paths.values()} == {"sub/1.png": 1, "sub/2.png": 2}
    assert result.problems.kinds == {"empty_text": 1}
    assert result.problems.first["empty_text"][0].message.startswith(f"{tmp_path}/a.jsonl:4: ")
    assert (result.sides["okvqa", "passage"].with_text, result.sides["okvqa", "passage"].sample) == (3, [])


def test_bad_rows_are_counted_and_skipped(tmp_path: Path) -> None:
    rows = [query("wit", 0) | passage("wit", 0), "{", query("wit", 1), query("wit", 2) | passage("wit", 2)]
    rows[0]["data_id"], rows[3]["data_id"] = "wit_1", "birds_2"
    rows[3]["question"] = " "
    result = scanned(tmp_path / "a.jsonl", rows, "training", SubsetNames(["wit"]))
    assert result.rows.rows == 4
    assert dict(result.rows.kinds) == {"bad_json": 1, "empty_row": 1}
    assert len(result.data_ids) == 2
    assert set(result.sides) == {(name, side) for name in ("wit", "unknown") for side in ("query", "passage")}
    assert dict(result.notes.kinds) == {"unknown_subset": 1, "empty_text": 1}


def test_image_in_row_is_checked(tmp_path: Path) -> None:
    row = {"data_id": "a", "question": "q?", "passage_id": "p"}
    images = [png(Image.new("RGB", (20, 20), "red")), png(Image.linear_gradient("L")), b"no picture"]
    rows = [row | {"image": base64.b64encode(image).decode()} for image in images]
    result = scanned(tmp_path / "a.jsonl", rows, "queries", reader=reader(tmp_path))
    assert dict(result.notes.kinds) == {ONE_COLOUR: 1}
    assert "#ff0000" in result.notes.first[ONE_COLOUR][0].message
    assert dict(result.problems.kinds) == {"unreadable_image": 1}
    assert result.rows.bad == 0  # the query is used without its image
    unread = scanned(tmp_path / "a.jsonl", rows, "queries")
    assert (unread.notes.bad, unread.problems.bad) == (0, 0)


def test_truncated_file_is_broken(tmp_path: Path) -> None:
    import gzip

    path = tmp_path / "a.jsonl.gz"
    whole = gzip.compress("".join(json.dumps(query("wit", i)) + "\n" for i in range(12)).encode())
    path.write_bytes(whole[:-20])
    files = RowFiles([path])
    (span,) = files.spans()
    result = RowScan(files, span, "queries", "wit", None, False)()
    assert result.broken.kind == "broken_file"
    assert result.rows.rows == len(result.data_ids) < 12


@pytest.mark.parametrize("decoded", [True, False])
def test_images_exist_or_are_decoded(tmp_path: Path, decoded: bool) -> None:
    (tmp_path / "black.png").write_bytes(png(Image.new("RGB", (9, 9))))
    (tmp_path / "good.png").write_bytes(png(Image.linear_gradient("L")))
    (tmp_path / "torn.png").write_bytes(png(Image.linear_gradient("L"))[:60])
    names = ["black.png", "good.png", "torn.png", "gone.png"]
    found = ImageScan(reader(tmp_path), decoded, [(i, name, "wit", LOCATION) for i, name in enumerate(names)])()
    kinds = {names[key]: row.kind for key, row in found.items()}
    expected = {"gone.png": "missing_image"}
    if decoded:
        expected |= {"black.png": ONE_COLOUR, "torn.png": "truncated_image"}
    assert kinds == expected
    assert all("a.jsonl:1" in row.message and "wit" in row.message for row in found.values())


def test_side_counts_add_up() -> None:
    sides = [
        Passage(f"p{i}", f"text {i}" if i % 3 else None, "a.png" if i % 2 else None, None, LOCATION) for i in range(200)
    ]
    whole, parts = SideCounts(), [SideCounts(), SideCounts()]
    for number, side in enumerate(sides):
        parts[number // 100].add(side, sampled=True)
    for part in parts:
        assert len(part.sample) == SAMPLED
        whole.update(part, max_sample=70)
    texts = [side.text for side in sides if side.text]
    assert (whole.rows, whole.with_text, whole.with_image) == (200, len(texts), 100)
    assert whole.characters == sum(map(len, texts))
    assert len(whole.sample) == 70


def test_image_hash_is_equal_for_equivalent_paths() -> None:
    assert hash_image_path("./sub//1.png") == hash_image_path("sub/1.png") == hash_image_path("/sub/x/../1.png")
    assert hash_image_path("sub/1.png") != hash_image_path("sub/2.png")
    assert hash_image_path("sub/1.png") != NO_IMAGE

"""Facts of rows that a check scans, against the rows as they were written."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ret_lightning.data.batch import text_hash
from ret_lightning.data.checks.row_scan import (
    NO_IMAGE,
    ONE_COLOUR,
    SAMPLED,
    Facts,
    ImageLook,
    RowScan,
    SideCounts,
    Untransformed,
    image_label,
)
from ret_lightning.data.images.sources import ImageReader, image_source
from ret_lightning.data.layouts.subset_names import SubsetNames
from ret_lightning.data.readers.row_files import RowFiles
from ret_lightning.data.readers.source_location import Place
from ret_lightning.data.rows import Passage
from tests.support.m2kr_folder import passage, query, write_lines

PLACE = Place(Path("a.jsonl"), 1)


def scanned(path: Path, rows: Sequence[dict | str], role: str, subset: object = "wit", **options: object) -> Facts:
    write_lines(path, rows)
    files = RowFiles([path])
    (stretch,) = files.stretches()
    return RowScan(files, stretch, role, subset, options.get("reader"), bool(options.get("sampled", True)))()


def reader(folder: Path) -> ImageReader:
    return ImageReader(image_source(str(folder)), Untransformed(None))


def png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_facts_of_queries(tmp_path: Path) -> None:
    rows = [query("okvqa", i) for i in range(8)]
    facts = scanned(tmp_path / "a.jsonl", rows, "queries", "okvqa")
    assert (facts.rows.rows, facts.rows.bad, facts.broken) == (8, 0, None)
    assert facts.data_id_texts == [row["data_id"] for row in rows]
    assert facts.data_ids.tolist() == [text_hash(row["data_id"]) for row in rows]
    assert facts.positives == [
        tuple(row["passage_id"]) if isinstance(row["passage_id"], list) else (row["passage_id"],) for row in rows
    ]
    starts = np.cumsum([0, *(len(json.dumps(row)) + 1 for row in rows)])
    assert facts.positions.tolist() == starts[:-1].tolist()
    assert facts.query_images.tolist() == [
        NO_IMAGE if row["image_path"] is None else image_label(row["image_path"]) for row in rows
    ]
    counts = facts.sides["okvqa", "query"]
    texts = [f"{row['instruction']} {row['question']}" for row in rows]
    assert (counts.rows, counts.with_text, counts.with_image) == (8, 8, 6)
    assert (counts.characters, counts.sample) == (sum(map(len, texts)), texts)


def test_facts_of_a_pool(tmp_path: Path) -> None:
    rows = [passage("okvqa", 1), passage("okvqa", 2) | {"passage_id": "two"}, passage("okvqa", 3)]
    rows.append({"passage_id": 9, "passage_text": None, "passage_image_path": None})
    facts = scanned(tmp_path / "a.jsonl", rows, "pool", "okvqa", sampled=False)
    assert facts.passage_ids == ["1", "two", "3", "9"]
    assert facts.number_ids == 3
    assert {path: place.line for path, _, place in facts.paths.values()} == {"sub/1.png": 1, "sub/2.png": 2}
    assert facts.problems.kinds == {"empty_text": 1}
    assert facts.problems.first["empty_text"][0].message.startswith(f"{tmp_path}/a.jsonl:4: ")
    assert (facts.sides["okvqa", "passage"].with_text, facts.sides["okvqa", "passage"].sample) == (3, [])


def test_bad_rows_are_counted_and_left_out(tmp_path: Path) -> None:
    rows = [query("wit", 0) | passage("wit", 0), "{", query("wit", 1), query("wit", 2) | passage("wit", 2)]
    rows[0]["data_id"], rows[3]["data_id"] = "wit_1", "birds_2"
    rows[3]["question"] = " "
    facts = scanned(tmp_path / "a.jsonl", rows, "training", SubsetNames(["wit"]))
    assert facts.rows.rows == 4
    assert dict(facts.rows.kinds) == {"bad_json": 1, "empty_row": 1}
    assert len(facts.data_ids) == 2
    assert set(facts.sides) == {(name, side) for name in ("wit", "unknown") for side in ("query", "passage")}
    assert dict(facts.notes.kinds) == {"unknown_subset": 1, "empty_text": 1}


def test_image_in_a_row_is_looked_at(tmp_path: Path) -> None:
    row = {"data_id": "a", "question": "q?", "passage_id": "p"}
    images = [png(Image.new("RGB", (20, 20), "red")), png(Image.linear_gradient("L")), b"no picture"]
    rows = [row | {"image": base64.b64encode(image).decode()} for image in images]
    facts = scanned(tmp_path / "a.jsonl", rows, "queries", reader=reader(tmp_path))
    assert dict(facts.notes.kinds) == {ONE_COLOUR: 1}
    assert "#ff0000" in facts.notes.first[ONE_COLOUR][0].message
    assert dict(facts.problems.kinds) == {"unreadable_image": 1}
    assert facts.rows.bad == 0  # a query goes without its image
    unread = scanned(tmp_path / "a.jsonl", rows, "queries")
    assert (unread.notes.bad, unread.problems.bad) == (0, 0)


def test_file_that_ends_early_is_broken(tmp_path: Path) -> None:
    import gzip

    path = tmp_path / "a.jsonl.gz"
    whole = gzip.compress("".join(json.dumps(query("wit", i)) + "\n" for i in range(12)).encode())
    path.write_bytes(whole[:-20])
    files = RowFiles([path])
    (stretch,) = files.stretches()
    facts = RowScan(files, stretch, "queries", "wit", None, False)()
    assert facts.broken.kind == "broken_file"
    assert facts.rows.rows == len(facts.data_ids) < 12


@pytest.mark.parametrize("decoded", [True, False])
def test_images_are_found_or_decoded(tmp_path: Path, decoded: bool) -> None:
    (tmp_path / "black.png").write_bytes(png(Image.new("RGB", (9, 9))))
    (tmp_path / "good.png").write_bytes(png(Image.linear_gradient("L")))
    (tmp_path / "torn.png").write_bytes(png(Image.linear_gradient("L"))[:60])
    names = ["black.png", "good.png", "torn.png", "gone.png"]
    found = ImageLook(reader(tmp_path), decoded, [(i, name, "wit", PLACE) for i, name in enumerate(names)])()
    kinds = {names[key]: row.kind for key, row in found.items()}
    expected = {"gone.png": "missing_image"}
    if decoded:
        expected |= {"black.png": ONE_COLOUR, "torn.png": "truncated_image"}
    assert kinds == expected
    assert all("a.jsonl:1" in row.message and "wit" in row.message for row in found.values())


def test_counts_of_stretches_add_up() -> None:
    sides = [
        Passage(f"p{i}", f"text {i}" if i % 3 else None, "a.png" if i % 2 else None, None, PLACE) for i in range(200)
    ]
    whole, parts = SideCounts(), [SideCounts(), SideCounts()]
    for number, side in enumerate(sides):
        parts[number // 100].add(side, sampled=True)
    for part in parts:
        assert len(part.sample) == SAMPLED
        whole.update(part, most=70)
    texts = [side.text for side in sides if side.text]
    assert (whole.rows, whole.with_text, whole.with_image) == (200, len(texts), 100)
    assert whole.characters == sum(map(len, texts))
    assert len(whole.sample) == 70


def test_label_of_an_image_is_that_of_its_path() -> None:
    assert image_label("./sub//1.png") == image_label("sub/1.png") == image_label("/sub/x/../1.png")
    assert image_label("sub/1.png") != image_label("sub/2.png")
    assert image_label("sub/1.png") != NO_IMAGE

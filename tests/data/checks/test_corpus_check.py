"""Corpus check: all problems with their source locations, and no problems of a valid corpus."""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pyarrow.parquet
import pytest
from PIL import Image

from ret_lightning import M2KRDataModule
from ret_lightning.data.checks.check_report import CheckReport, Finding
from ret_lightning.data.checks.corpus_check import CorpusCheck
from ret_lightning.data.checks.row_scan import RowScan
from ret_lightning.data.readers import row_files
from ret_lightning.errors import ConfigError, DataError
from ret_lightning.inputs import ClipTokenizer, ImageTransform
from tests.support.m2kr_folder import passage, write_folder

TRAIN, TEST, POOLS = "jsonl/m2kr/train/m2kr_up_train.jsonl", "jsonl/m2kr/test", "jsonl/m2kr/passages"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "m2kr")


def module(root: Path, **options) -> M2KRDataModule:
    return M2KRDataModule(
        root, ClipTokenizer(), ImageTransform(16), **{"batch_size": 8, "validation": "test", **options}
    )


def checked(root: Path, images: str = "decode", share: float = 1.0, **options) -> CheckReport:
    return CorpusCheck(module(root, **options), images, share, workers=2, progress=False).run()


def found(findings: list[Finding]) -> dict[tuple[str, str], int]:
    return {(finding.where, finding.kind): finding.count for finding in findings}


def first(findings: list[Finding], kind: str) -> str:
    return next(finding.first[0] for finding in findings if finding.kind == kind)


def edit(file: Path, changes: dict[int, str | dict]) -> None:
    """Replace the text or some fields of lines, by 0-based line number."""
    lines = file.read_text().splitlines()
    for number, change in changes.items():
        lines[number] = change if isinstance(change, str) else json.dumps(json.loads(lines[number]) | change)
    file.write_text("\n".join(lines) + "\n")


def test_valid_corpus_has_no_problems(root: Path) -> None:
    report = checked(root)
    assert (report.problems, report.exit_code, report.rows, report.images) == ([], 0, 40 + 8 * 12, 12)
    rows = {(row.part, row.subset): row for row in report.table}
    assert rows["test pool", "okvqa"].rows == 12
    texts = [passage("okvqa", i)["passage_text"] for i in range(12)]
    lengths = [len(text) for text in texts if text]
    assert rows["test pool", "okvqa"].with_text == len(lengths)
    assert rows["test pool", "okvqa"].mean_characters == round(sum(lengths) / len(lengths), 1)
    assert sum(row.rows for row in report.table if row.part == "training query") == 40
    assert found(report.notes)["test/okvqa queries", "ids_of_two_types"] == 1


def test_all_problems_are_reported(root: Path) -> None:
    images = root / "images/m2kr/images/sub"
    (images / "3.png").unlink()
    (images / "4.png").write_bytes(b"no image")
    edit(root / TRAIN, {1: "{", 5: '{"data_id": 5}', 8: {"data_id": "nobody_8"}, 9: {"image_path": "../x.png"}})
    edit(root / TEST / "okvqa_test.jsonl", {2: {"data_id": "okvqa_test_1"}, 4: {"passage_id": ["gone", "away"]}})
    edit(
        root / POOLS / "wit_passages_test.jsonl",
        {3: {"passage_id": "wit_1"}, 6: {"passage_text": " ", "passage_image_path": None}},
    )
    (root / POOLS / "evqa_passages_test.jsonl").unlink()
    (root / TEST / "infoseek_test.jsonl").unlink()
    report = checked(root)
    assert found(report.problems) == {
        ("training", "bad_json"): 1,
        ("training", "missing_field"): 1,
        ("training", "path_outside"): 1,
        ("test/okvqa queries", "duplicate_id"): 1,
        ("test/okvqa queries", "unreachable_query"): 1,
        ("test/wit pool", "duplicate_id"): 1,
        ("test/wit pool", "empty_text"): 1,
        ("test/wit queries", "unreachable_query"): 1,  # of the passage whose id was changed
        ("test/evqa pool", "missing_file"): 1,
        ("test/infoseek queries", "missing_file"): 1,
        ("images", "missing_image"): 1,
        ("images", "unreadable_image"): 1,
    }
    notes = found(report.notes)
    assert notes["training", "unknown_subset"] == notes["test/wit pool", "empty_text"] == 1
    assert first(report.problems, "bad_json").startswith(f"{root / TRAIN}:2: ")
    assert first(report.problems, "path_outside").startswith(f"{root / TRAIN}:10: field image_path")
    duplicates = [finding.first[0] for finding in report.problems if finding.kind == "duplicate_id"]
    assert any(":3: data_id 'okvqa_test_1' occurs twice in the file, first in line 2" in line for line in duplicates)
    assert "okvqa_test.jsonl:5: no positive of the query is in the candidate pool: gone, away" in first(
        report.problems, "unreachable_query"
    ) or "wit_test" in first(report.problems, "unreachable_query")
    assert report.exit_code == 1


@pytest.mark.parametrize("images", ["decode", "exist", "none"])
def test_images_option_selects_checks(root: Path, images: str) -> None:
    folder = root / "images/m2kr/images/sub"
    (folder / "3.png").unlink()
    (folder / "4.png").write_bytes(b"no image")
    kinds = {kind for _, kind in found(checked(root, images).problems)}
    assert kinds == {
        "decode": {"missing_image", "unreadable_image"}, "exist": {"missing_image"}, "none": set(),
    }[images]  # fmt: skip


def test_image_share_is_deterministic(root: Path) -> None:
    few = checked(root, share=0.5)
    assert 0 < few.images < 12
    assert few.images == checked(root, share=0.5).images


def test_check_reports_rows_skipped_by_training(root: Path) -> None:
    edit(root / TRAIN, {1: "{", 5: "[]", 7: {"passage_text": 3}, 9: {"image_path": "sub/none.png"}, 11: "\ufeff{}"})
    report = checked(root)
    data = module(root, on_bad_row="skip")
    data.prepare_data()
    data.setup()
    bad = [row for batch in data.train_dataloader() for row in batch.bad_rows]
    messages = [message for finding in report.problems for message in finding.first]
    assert len(bad) == 5
    for row in bad:
        assert row.message in messages


def test_problems_in_several_spans_have_lines(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_files, "MIN_SPAN_BYTES", 700)
    edit(root / TRAIN, {3: "{", 30: "}", 38: ""})
    report = checked(root, images="none")
    assert found(report.problems) == {("training", "bad_json"): 2}
    lines = [message.split(": ")[0] for finding in report.problems for message in finding.first]
    assert lines == [f"{root / TRAIN}:4", f"{root / TRAIN}:31"]
    assert report.rows == 39 + 96


def test_leaks_are_noted(root: Path) -> None:
    ids = [json.loads(line)["data_id"] for line in (root / TRAIN).read_text().splitlines()]
    edit(root / TEST / "okvqa_test.jsonl", {7: {"data_id": ids[3]}})
    edit(root / TRAIN, {4: {"data_id": ids[0]}})
    report = checked(root)
    notes = found(report.notes)
    assert notes["test/okvqa queries", "data_id_in_training"] == notes["training", "repeated_data_id"] == 1
    assert first(report.notes, "data_id_in_training").startswith(f"{root / TEST / 'okvqa_test.jsonl'}:8: ")
    assert report.exit_code == 0


def test_truncated_and_missing_files_are_reported(root: Path, tmp_path: Path) -> None:
    whole = gzip.compress((root / TRAIN).read_bytes())
    (root / f"{TRAIN}.gz").write_bytes(whole[: len(whole) // 2])
    (root / TRAIN).unlink()
    problems = checked(root).problems
    assert ("training", "broken_file") in found(problems)
    assert "cannot decompress the file after line" in first(problems, "broken_file")
    nowhere = checked(tmp_path / "nowhere").problems
    (message,) = [message for finding in nowhere for message in finding.first]
    assert message.startswith(f"data.root={tmp_path / 'nowhere'}: no such folder")
    chosen = checked(root, subsets=["wit", "kvqa"]).problems
    assert {("test/kvqa queries", "missing_file"), ("test/kvqa pool", "missing_file")} < set(found(chosen))
    with pytest.raises(ConfigError) as error:
        checked(write_folder(tmp_path / "other"), repeat={"wti": 2})
    assert (error.value.code, error.value.key, error.value.found) == ("unknown-subset", "data.repeat", "wti")


def test_skip_mode_in_evaluation_files(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(root / TEST / "okvqa_test.jsonl", {2: "{", 3: "[]"})
    edit(root / POOLS / "okvqa_passages_test.jsonl", {5: {"passage_id": 4}})
    options = {"subsets": ["okvqa"], "on_bad_row": "skip"}
    data = module(root, max_bad_fraction=0.2, **options)
    data.prepare_data()
    data.setup()
    subset = data.evaluation_subsets("test")[0]
    assert (len(subset.queries), len(subset.pool)) == (10, 11)
    assert subset.pool[4].text == passage("okvqa", 4)["passage_text"]  # the first of the two
    lines = [r.getMessage() for r in caplog.records if ": skipped " in r.getMessage()]
    assert (
        f"{root / TEST / 'okvqa_test.jsonl'}: skipped 2 of 12 rows (1 bad_json, 1 wrong_type); the first: " in lines[0]
    )
    assert "(1 duplicate_id)" in lines[1]
    few = module(root, limit=3, max_bad_fraction=0.4, **options)
    few.setup()
    assert [q.data_id for q in few.evaluation_subsets("test")[0].queries] == [f"okvqa_test_{i}" for i in (0, 1, 4)]
    with pytest.raises(DataError) as error:
        module(root, max_bad_fraction=0.1, **options).setup()
    assert error.value.code == "too-many-bad-rows"
    assert Path(error.value.part).name == "okvqa_test.jsonl"
    assert (error.value.found, error.value.rows, error.value.allowed) == (2, 12, 0.1)


@pytest.mark.slow
def test_ret_check_command(root: Path, tmp_path: Path) -> None:
    def ret_check(*options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "ret_lightning.commands.check", *map(str, options)],
            capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"COLUMNS": "300"},
        )  # fmt: skip

    sound = ret_check(f"data.root={root}", f"report={tmp_path / 'sound.json'}")
    assert (sound.returncode, sound.stderr) == (0, "")
    assert "no problems" in sound.stdout
    assert json.loads((tmp_path / "sound.json").read_text())["ok"] is True
    edit(root / TRAIN, {1: "{"})
    broken = ret_check(f"data.root={root}", "images=none", "workers=1", f"report={tmp_path / 'broken.json'}")
    assert broken.returncode == 1
    assert f"{root / TRAIN}:2: " in broken.stdout
    report = json.loads((tmp_path / "broken.json").read_text())
    assert [(p["where"], p["kind"], p["count"]) for p in report["problems"]] == [("training", "bad_json", 1)]
    problem = ret_check(f"data.root={root}", "images=all", "workers=0")
    assert problem.returncode == 2
    assert "images" in problem.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken.json", "m2kr", "sound.json"]


def test_killed_worker_is_reported(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RowScan, "__call__", lambda scan: os._exit(9))
    with pytest.raises(DataError) as error:
        checked(root)
    assert (error.value.code, error.value.workers) == ("check-process-killed", 2)


@pytest.mark.parametrize("kind", ["gz", "parquet"])
def test_compressed_and_parquet_files_are_checked(root: Path, kind: str) -> None:
    edit(root / TRAIN, {4: {"passage_id": []}})
    lines = [json.loads(line) for line in (root / TRAIN).read_text().splitlines()]
    (root / TRAIN).unlink()
    if kind == "gz":
        (root / f"{TRAIN}.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    else:
        rows = [
            {k: row[k] for k in ("data_id", "question", "passage_text")} | {"passage_id": ["p"] * (i != 4)}
            for i, row in enumerate(lines)
        ]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), root / TRAIN.replace(".jsonl", ".parquet"))
    problems = checked(root).problems
    assert ":5: " in first(problems, "missing_field") or ", row 5: " in first(problems, "missing_field")
    assert found(problems)["training", "missing_field"] == 1


def test_images_of_one_colour_are_noted(root: Path) -> None:
    images = root / "images/m2kr/images/sub"
    for i, colour in ((3, "black"), (4, (1, 2, 3)), (5, "white")):
        Image.new("RGB", (30, 20), colour).save(images / f"{i}.png")
    Image.new("L", (30, 20), 7).save(images / "5.png")
    nearly = Image.new("RGB", (30, 20))
    nearly.putpixel((29, 19), (0, 0, 1))
    nearly.save(images / "6.png")
    report = checked(root)
    assert (report.problems, report.exit_code) == ([], 0)
    note = next(finding for finding in report.notes if finding.kind == "one_colour_image")
    assert (note.where, note.count) == ("images", 3)
    assert note.summary.startswith(" of 12 images (25.00%), referenced ")
    colours = {line.rpartition(" image ")[2] for line in note.first}
    assert colours == {
        f"sub/{i}.png have the colour #{colour}" for i, colour in ((3, "000000"), (4, "010203"), (5, "070707"))
    }
    assert all(re.search(r"\.jsonl:\d+ \(subset \w+\): ", line) for line in note.first)
    assert not any(finding.kind == "one_colour_image" for finding in checked(root, "exist").notes)


def test_stored_images_of_one_colour_are_noted(root: Path) -> None:
    file = BytesIO()
    Image.new("RGB", (30, 20), "red").save(file, "PNG")
    image = base64.b64encode(file.getvalue()).decode()
    edit(root / TRAIN, {2: {"image_path": None, "image": image}})
    report = checked(root)
    assert found(report.notes)["training", "one_colour_image"] == 1
    assert first(report.notes, "one_colour_image").endswith("all pixels of image in the row have the colour #ff0000")

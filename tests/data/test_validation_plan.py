"""Tests of the validation plan through the data module: the holdout does not depend on files, reading, mixture or ranks."""

from __future__ import annotations

import gzip
import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from ret_lightning import M2KRDataModule
from ret_lightning.data.sampling import subset_index
from ret_lightning.data.types import distinct_ids
from ret_lightning.errors import ConfigError, DataError
from ret_lightning.inputs import ClipTokenizer, ImageTransform
from tests.support.m2kr_folder import SUBSETS, TRAIN, query, read, write_folder, write_lines
from tests.support.row_files import READINGS, uniform

MOST = {"holdout_rows": 6, "holdout_fraction": 0.1}


def module(root: Path, stage: str = "fit", **options: Any) -> M2KRDataModule:
    data = M2KRDataModule(root, ClipTokenizer(), ImageTransform(16), **{"batch_size": 8, **MOST, **options})
    if stage == "fit":
        data.prepare_data()
    data.setup(stage)
    return data


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Create 200 training rows, 50 per subset, with two or three rows per passage; every third row has two passages."""
    root = write_folder(tmp_path / "m2kr", training_rows=200)
    rows = read(root / TRAIN)
    for number, row in enumerate(rows):
        first = number // 4 % 20
        row["passage_id"] = [f"p{first}", f"p{(first + 1) % 20}"] if number % 3 == 0 else f"p{first}"
    write_lines(root / TRAIN, rows)
    return root


def subset_of(row: dict) -> str:
    return row["data_id"].split("_")[0].lower()


def ids_of(row: dict) -> set[str]:
    ids = row["passage_id"]
    return {str(i) for i in (ids if isinstance(ids, list) else [ids])}


def training_rows_of(data: M2KRDataModule, rank: int = 0, ranks: int = 1) -> list[dict]:
    """Return the training rows that a rank samples in an epoch."""
    contents = (
        data._train.rows[sample.row][0] for batch in data._train.batches(8 // ranks, rank, ranks) for sample in batch
    )
    return [content if isinstance(content, dict) else json.loads(content) for content in contents]


def validation_rows_of(data: M2KRDataModule) -> dict[str, tuple[list, list]]:
    """Return the queries and the pool of each subset, without source locations."""
    return {
        s.name: (
            [(q.data_id, q.text, q.image_path, q.passage_ids, q.answers) for q in s.queries],
            [(p.passage_id, p.text, p.image_path) for p in s.pool],
        )
        for s in data.evaluation_subsets("val")
    }


def assert_disjoint(data: M2KRDataModule, rows: list[dict]) -> None:
    """Check that training rows and validation queries of a subset share no passage."""
    training: dict[str, set[str]] = {}
    for row in rows:
        training.setdefault(subset_of(row), set()).update(ids_of(row))
    for subset in data.evaluation_subsets("val"):
        assert subset.queries
        assert subset.unreachable == []
        assert len({p.passage_id for p in subset.pool}) == len(subset.pool)
        for query_ in subset.queries:
            assert training.get(subset.name, set()).isdisjoint(query_.passage_ids)


def test_each_row_is_trained_or_held_out_or_left_out(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        data = module(root)
    assert data.validated_on == dict.fromkeys(("wit", "infoseek", "evqa", "okvqa"), "holdout")
    rows, once = read(root / TRAIN), Counter(row["data_id"] for row in training_rows_of(data))
    assert_disjoint(data, training_rows_of(data))
    assert set(once.values()) == {1}
    queries = {name: {q[0] for q in queries} for name, (queries, _) in validation_rows_of(data).items()}
    for name in SUBSETS:
        found = data.validation_plan().holdout.subsets[name]
        own = {row["data_id"] for row in rows if subset_of(row) == name}
        left_out = own - queries[name] - set(once)
        assert len(own & set(once)) + len(queries[name]) + len(left_out) == found.rows == 50
        assert (len(queries[name]), len(left_out)) == (len(found.held_out), len(found.left_out))
        assert 0 < len(queries[name]) + len(left_out) <= 5
        removed = len(queries[name]) + len(left_out)
        assert f"val/{name}: {removed} of 50 training rows are removed from training" in caplog.text
        assert f": {len(queries[name])} are held out as validation queries, {len(left_out)} are left out" in caplog.text
    assert any(len(found.left_out) for found in data.validation_plan().holdout.subsets.values())
    assert f"{len(once)} rows from" in caplog.text


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize(
    "options",
    [
        {"repeat": {"okvqa": 3, "wit": 0.5}},
        {"weights": {"okvqa": 1, "evqa": 2}},
        {"one_subset_batches": True},
        {"subsets": ["okvqa", "wit"]},
        {"limit": 20},
        {"seed": 5, "shuffle_buffer": 4},
        {"on_bad_row": "skip", "max_bad_fraction": 0.5},
    ],
)
def test_holdout_does_not_depend_on_other_settings(root: Path, reading: str, options: dict) -> None:
    expected = validation_rows_of(module(root))
    data = module(root, reading=reading, **options)
    found, limit = validation_rows_of(data), options.get("limit")
    assert found == {name: expected[name] for name in options.get("subsets", expected)}
    rows = [row for epoch in range(2) for row in training_rows_of(data)]
    assert_disjoint(data, rows)
    if limit:
        assert len(rows) == 2 * limit  # as many rows as without a holdout
        few = module(root, reading=reading, limit=2)
        assert {n: q for n, (q, _) in validation_rows_of(few).items()} == {n: q[:2] for n, (q, _) in expected.items()}
    if "weights" in options and reading == "indexed":
        counts, left = Counter(map(subset_of, training_rows_of(data))), data._train._counts()
        assert sum(counts.values()) == pytest.approx(left["okvqa"] + left["evqa"], abs=1)
        assert counts["evqa"] == pytest.approx(2 * counts["okvqa"], abs=2)


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("kind", ["gz", "zst", "parquet", "parts"])
def test_holdout_does_not_depend_on_file_format(root: Path, reading: str, kind: str) -> None:
    write_lines(root / TRAIN, [json.dumps(uniform(row)) for row in read(root / TRAIN)])
    data = module(root)
    expected, ids = validation_rows_of(data), sorted(row["data_id"] for row in training_rows_of(data))
    plain, rows = root / TRAIN, read(root / TRAIN)
    name = f"m2kr_up_train.{'parquet' if kind == 'parquet' else f'jsonl.{kind}'}"
    if kind == "gz":
        plain.with_name(name).write_bytes(gzip.compress(plain.read_bytes()))
    elif kind == "zst":
        plain.with_name(name).write_bytes(pyarrow.Codec("zstd").compress(plain.read_bytes(), asbytes=True))
    elif kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), plain.with_name(name), row_group_size=30)
    else:
        name = ["b.jsonl", "a.jsonl"]
        write_lines(plain.with_name("b.jsonl"), rows[:70])
        write_lines(plain.with_name("a.jsonl"), rows[70:])
    plain.unlink()
    data = module(root, reading=reading, train_file=name)
    assert validation_rows_of(data) == expected
    assert sorted(row["data_id"] for row in training_rows_of(data)) == ids


@pytest.mark.parametrize("reading", READINGS)
def test_ranks_have_the_same_validation_rows(root: Path, reading: str) -> None:
    datas = [module(root, reading=reading) for _ in range(2)]
    shares = [training_rows_of(data, rank, 2) for rank, data in enumerate(datas)]
    whole = training_rows_of(datas[0])
    assert sorted(row["data_id"] for share in shares for row in share) == sorted(row["data_id"] for row in whole)
    assert validation_rows_of(datas[0]) == validation_rows_of(datas[1])


@pytest.mark.parametrize("reading", READINGS)
def test_evaluation_only_has_the_same_holdout(root: Path, reading: str) -> None:
    assert validation_rows_of(module(root, "validate", reading=reading)) == validation_rows_of(module(root))
    (root / TRAIN).unlink()
    assert len(module(root, "test").evaluation_subsets("test")) == 4  # needs no training rows


def test_prepare_data_scans_for_all_ranks(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    M2KRDataModule(root, ClipTokenizer(), ImageTransform(16), batch_size=8).prepare_data()
    monkeypatch.setattr(subset_index, "_scan", lambda *_: pytest.fail("scanned again"))
    M2KRDataModule(root, ClipTokenizer(), ImageTransform(16), batch_size=8).setup("fit")


def test_auto_prefers_files_over_holdout(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_lines(root / "jsonl/m2kr/val/okvqa_val.jsonl", [query("okvqa", 1)])
    lines = [line for line in read(root / TRAIN) if subset_of(line) != "evqa"]
    write_lines(root / TRAIN, lines)
    with caplog.at_level(logging.INFO):
        data = module(root)
    assert data.validated_on == {"wit": "holdout", "infoseek": "holdout", "okvqa": "val"}
    assert "val/evqa: no training rows are held out: no training rows" in caplog.text
    own = [row for row in lines if subset_of(row) == "okvqa"]
    assert sum(subset_of(row) == "okvqa" for row in training_rows_of(data)) == len(own)
    assert module(root, validation="holdout").validated_on == dict.fromkeys(("wit", "infoseek", "okvqa"), "holdout")


def test_auto_with_all_files_does_not_scan(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SUBSETS:
        write_lines(root / f"jsonl/m2kr/val/{name}_val.jsonl", [query(name, 1)])
    monkeypatch.setattr(subset_index, "_scan", lambda *_: pytest.fail("scanned"))
    data = module(root)
    assert set(data.validated_on.values()) == {"val"}
    assert len(training_rows_of(data)) == 200


def test_holdout_without_rows_is_an_error(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = read(root / TRAIN)
    for number, row in enumerate(rows):
        row["data_id"] = str(number)  # states no subset
    write_lines(root / TRAIN, rows)
    with pytest.raises(ConfigError) as error:
        module(root, validation="holdout")
    assert (error.value.code, error.value.allowed) == ("nothing-to-hold-out", ("val", "test"))
    assert error.value.path.endswith("m2kr_up_train.jsonl")
    assert "wit: no training rows" in error.value.message
    assert "200 training rows state no subset" in error.value.message
    assert "\n" not in error.value.message
    data = module(root)
    assert set(data.validated_on.values()) == {"test"}
    assert len(training_rows_of(data)) == 200
    assert "is selected on the test queries" in caplog.text


def test_missing_training_files_fall_back_to_test_queries(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / TRAIN).unlink()
    assert set(module(root, "validate").validated_on.values()) == {"test"}
    assert "m2kr_up_train.jsonl: no such file" in caplog.text
    with pytest.raises(DataError) as error:
        module(root, "validate", validation="holdout")
    assert error.value.code == "missing-corpus-file"


@pytest.mark.parametrize("validation", ["test", "val_or_test"])
def test_validation_on_test_keeps_all_training_rows(
    root: Path, validation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subset_index, "_scan", lambda *_: pytest.fail("scanned"))
    data = module(root, validation=validation)
    assert set(data.validated_on.values()) == {"test"}
    assert len(training_rows_of(data)) == 200


def test_subset_of_row_does_not_depend_on_chosen_subsets(tmp_path: Path) -> None:
    """A row of shapes_big is not assigned to shapes, even if only shapes is evaluated."""
    root = write_folder(tmp_path / "m2kr", subsets=["shapes", "shapes_big"], training_rows=200)
    every = validation_rows_of(module(root))
    assert validation_rows_of(module(root, subsets=["shapes"]))["shapes"] == every["shapes"]


def test_repeated_ids_get_line_numbers(root: Path) -> None:
    rows = read(root / TRAIN)
    for row in rows:
        row["data_id"] = f"{subset_of(row)}_1"
    lines = ["", "", *map(json.dumps, rows)]
    (root / TRAIN).write_text("\n".join(lines))
    for reading in READINGS:
        subset = module(root, "validate", reading=reading).evaluation_subsets("val")[0]
        first, *others = distinct_ids(subset.queries)
        assert (first, len(others) > 0) == ("wit_1", True)
        for name, query_ in zip(others, subset.queries[1:], strict=True):
            row = json.loads(lines[int(name.removeprefix("wit_1#line")) - 1])
            assert (ids_of(row), row["image_path"]) == (set(query_.passage_ids), query_.image_path)

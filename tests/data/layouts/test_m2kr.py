"""Tests of the ReT-M2KR layout: its files and its subsets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ret_lightning import M2KRDataModule
from ret_lightning.data.layouts.m2kr import M2KR_PUBLISHED, M2KRLayout
from ret_lightning.data.subset_loading import load_subset
from ret_lightning.errors import DataError
from ret_lightning.inputs import ClipTokenizer, ImageTransform
from tests.support.m2kr_folder import PASSAGES, query, write_folder, write_lines
from tests.support.row_files import ROWS, write


def module(root: Path, **options) -> M2KRDataModule:
    data = M2KRDataModule(
        root, ClipTokenizer(), ImageTransform(16), **{"batch_size": 8, "validation": "test", **options}
    )
    data.prepare_data()
    data.setup()
    return data


def test_all_files_may_share_one_folder(root: Path) -> None:
    flat = root / "all"
    flat.mkdir()
    for file in sorted((root / "jsonl").rglob("*.jsonl")):
        file.rename(flat / file.name)
    folders = dict.fromkeys(("train_folder", "val_folder", "test_folder", "passages_folder"), "all")
    data = module(root, **folders)
    assert [s.name for s in data.evaluation_subsets("test")] == ["wit", "infoseek", "evqa", "okvqa"]


def test_sampled_validation_pool_contains_all_positives(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "m2kr")
    for size, expected in ((1, None), (PASSAGES - 2, PASSAGES - 2), (PASSAGES, PASSAGES), (500, PASSAGES)):
        pools = []
        for _ in range(2):
            data = module(root, limit=4, validation_pool=size)
            (subset,) = [s for s in data.evaluation_subsets("val") if s.name == "wit"]
            (whole,) = [s for s in data.evaluation_subsets("test") if s.name == "wit"]
            pools.append([passage.passage_id for passage in subset.pool])
        full = [passage.passage_id for passage in whole.pool]
        positives = {passage_id for query in subset.queries for passage_id in query.passage_ids} & set(full)
        assert len(full) == PASSAGES
        assert pools[0] == pools[1] == [p for p in full if p in set(pools[0])]
        assert positives <= set(pools[0])
        assert len(pools[0]) == (expected or len(positives))


def test_subsets_and_pools_are_those_with_files(root: Path) -> None:
    tests, pools = root / "jsonl/m2kr/test", root / "jsonl/m2kr/passages"
    for name in ("birds_test.jsonl.gz", "apes_test_m2kr.parquet", "odd_passages_test.jsonl", "notes.txt", "x_test.csv"):
        (tests / name).write_text("{}")
    (pools / "birds_passages_test.parquet").write_text("")
    files = M2KRLayout(root)
    assert files.subsets() == [
        "wit",
        "infoseek",
        "evqa",
        "okvqa",
        "apes",
        "birds",
    ]  # in the order of the paper, then sorted
    assert files.pools() == ["birds", "evqa", "infoseek", "okvqa", "wit"]


def test_first_suffix_has_priority(root: Path) -> None:
    folder = root / "jsonl/m2kr/test"
    other = write(folder / "wit_test.jsonl.gz", ROWS)
    assert [path.name for path in M2KRLayout(root).query_files("wit", "test").paths] == ["wit_test.jsonl"]
    (folder / "wit_test.jsonl").unlink()
    assert M2KRLayout(root).query_files("wit", "test").paths == (other,)
    assert [path.name for path in M2KRLayout(root).query_files("evqa", "test").paths] == ["evqa_test_m2kr.jsonl"]


def test_validation_queries_come_from_val_file(root: Path) -> None:
    files = M2KRLayout(root)
    assert not files.has_validation("wit")
    write_lines(root / "jsonl/m2kr/val/wit_val.jsonl", [query("wit", 2)])
    assert files.has_validation("wit")
    assert [q.data_id for q in load_subset(files, "wit", "val").queries] == ["2"]
    assert load_subset(files, "wit", "val", "test").source == "test"


@pytest.mark.parametrize("open_files", [lambda files: files.training_files(), lambda files: files.passage_files("wit")])
def test_missing_file_error_has_code_and_path(tmp_path: Path, open_files: Callable[[M2KRLayout], object]) -> None:
    for folder, code in ((tmp_path / "nowhere", "missing-data-root"), (tmp_path, "missing-corpus-file")):
        with pytest.raises(DataError) as error:
            open_files(M2KRLayout(folder))
        assert error.value.code == code
        assert error.value.path.startswith(str(folder))


def test_published_models_have_all_columns() -> None:
    columns, models = M2KR_PUBLISHED.metrics, M2KR_PUBLISHED.models
    assert len(columns) == 11
    assert {len(values) for values in models.values()} == {11}
    assert dict(zip(columns, models["ReT OpenCLIP ViT-G/14"], strict=True))["okvqa", "pseudo_recall@5"] == 0.638
    assert dict(zip(columns, models["ReT OpenCLIP ViT-G/14"], strict=True))["llava", "recall@1"] == 0.792

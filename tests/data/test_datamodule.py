"""Tests of the data module: batches from files, and one-line errors for bad files and options."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from PIL import Image

from ret_lightning import M2KRDataModule
from ret_lightning.data.batch import label
from ret_lightning.errors import DataError, UserError
from ret_lightning.inputs import Augmentation, ClipTokenizer, ImageTransform, open_image
from tests.support.m2kr_folder import PASSAGES, TRAIN, passage, query, read, write_folder, write_lines


def module(root: Path, **options) -> M2KRDataModule:
    data = M2KRDataModule(
        root, ClipTokenizer(), ImageTransform(16), **{"batch_size": 8, "validation": "test", **options}
    )
    data.prepare_data()
    data.setup()
    return data


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "m2kr")


def test_training_batches_contain_the_rows(root: Path) -> None:
    data = module(root)
    rows = read(root / TRAIN)
    tokenizer, transform = ClipTokenizer(), ImageTransform(16)
    loader = data.train_dataloader()
    order = [sample.row for batch in loader.batch_sampler for sample in batch]
    assert sorted(order) == list(range(40))
    position = 0
    for batch in loader:
        chosen = [rows[i] for i in order[position : position + len(batch)]]
        position += len(batch)
        texts = [f"{r['instruction']} {r['question']}" if r["question"] else r["instruction"] for r in chosen]
        assert torch.equal(batch.queries.input_ids, tokenizer(texts)[0])
        assert batch.queries.image_mask.tolist() == [r["image_path"] is not None for r in chosen]
        assert batch.passages.text_mask.tolist() == [r["passage_text"] is not None for r in chosen]
        pictures = [r["passage_image_path"] for r in chosen if r["passage_image_path"]]
        expected = [transform(open_image(root / "images/m2kr/images" / path)) for path in pictures]
        assert torch.equal(batch.passages.pixel_values, torch.stack(expected))
        subsets = [r["data_id"].split("_")[0].lower() for r in chosen]
        assert list(batch.subsets) == subsets
        ids = [r["passage_id"] if isinstance(r["passage_id"], list) else [r["passage_id"]] for r in chosen]
        firsts = [label(subset, str(own[0])) for subset, own in zip(subsets, ids, strict=True)]
        assert batch.labels[:, 0].tolist() == batch.passage_labels.tolist() == firsts
    assert position == 40


def test_evaluation_loaders_alternate_pools_and_queries(root: Path) -> None:
    data = module(root, eval_batch_size=5)
    subsets = data.evaluation_subsets("test")
    assert [s.name for s in subsets] == ["wit", "infoseek", "evqa", "okvqa"]  # the order of the paper
    loaders = data.test_dataloader()
    assert len(loaders) == 8
    for subset, pool, queries in zip(subsets, loaders[0::2], loaders[1::2], strict=True):
        assert torch.cat([b.rows for b in pool]).tolist() == list(range(PASSAGES))
        assert torch.cat([b.rows for b in queries]).tolist() == list(range(PASSAGES))
        masks = torch.cat([b.inputs.text_mask for b in pool])
        assert masks.tolist() == [passage(subset.name, i)["passage_text"] is not None for i in range(PASSAGES)]
        assert subset.unreachable == []
    okvqa = subsets[-1]
    assert okvqa.queries[3].passage_ids == ("3", "okvqa_elsewhere")
    assert okvqa.pool[3].passage_id == "3"
    assert subsets[1].queries[0].answers == ("word0", "unheard of")


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_workers(root: Path, workers: int) -> None:
    augmentation = Augmentation(rotation=20, shift=0.1)
    alone = list(module(root, augmentation=augmentation, seed=3).train_dataloader())
    got = list(module(root, augmentation=augmentation, seed=3, num_workers=workers).train_dataloader())
    assert len(got) == len(alone) == 5
    for a, b in zip(alone, got, strict=True):
        assert torch.equal(a.queries.pixel_values, b.queries.pixel_values)
        assert torch.equal(a.labels, b.labels)
    plain = list(module(root, seed=3).train_dataloader())
    assert not torch.equal(plain[0].queries.pixel_values, alone[0].queries.pixel_values)


def test_subsets_select_training_rows(root: Path) -> None:
    data = module(root, subsets=["okvqa", "wit"])
    assert [s.name for s in data.evaluation_subsets("val")] == ["okvqa", "wit"]
    seen = {name for batch in data.train_dataloader() for name in batch.subsets}
    assert seen == {"okvqa", "wit"}


def test_subset_field_has_priority_over_data_id(root: Path) -> None:
    rows = read(root / TRAIN)
    for row in rows:
        row["subset"] = "wit"
    write_lines(root / TRAIN, rows)
    data = module(root, subsets=["wit"])
    assert sum(len(batch) for batch in data.train_dataloader()) == 40


def test_val_or_test_falls_back_to_test_queries(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_lines(root / "jsonl/m2kr/val/okvqa_val.jsonl", [query("okvqa", 1)])
    with caplog.at_level(logging.INFO):
        data = module(root, validation="val_or_test")
    sizes = {s.name: len(s.queries) for s in data.evaluation_subsets("val")}
    assert sizes == {"wit": PASSAGES, "infoseek": PASSAGES, "evqa": PASSAGES, "okvqa": 1}
    assert "val/wit: 12 queries, 12 passages (test queries)" in caplog.text
    assert data.validated_on == {"wit": "test", "infoseek": "test", "evqa": "test", "okvqa": "val"}
    with pytest.raises(DataError) as error:
        module(root, validation="val")
    assert error.value.code == "missing-corpus-file"
    assert error.value.path.endswith("val/wit_val.jsonl")


def test_unreachable_queries_are_counted_and_reported(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [query("wit", i) for i in range(4)]
    rows[1]["passage_id"] = "nowhere"
    rows[3]["passage_id"] = ["nowhere", 17]
    write_lines(root / "jsonl/m2kr/test/wit_test.jsonl", rows)
    data = module(root, subsets=["wit"])
    assert data.evaluation_subsets("test")[0].unreachable == [1, 3]
    assert "test/wit: 2 of 4 queries have no positive in the candidate pool and count as misses" in caplog.text
    assert "data_id 1 at" in caplog.text
    assert "wit_test.jsonl:2" in caplog.text


WIT_TEST, WIT_POOL = "jsonl/m2kr/test/wit_test.jsonl", "jsonl/m2kr/passages/wit_passages_test.jsonl"


def remove(relative: str):
    return lambda root: (root / relative).unlink()


def append(relative: str, text: str):
    def change(root: Path) -> None:
        with (root / relative).open("a") as file:
            file.write(text)

    return change


@pytest.mark.parametrize(
    ("change", "file", "code", "values"),
    [
        (remove(TRAIN), TRAIN, "missing-corpus-file", {}),
        (remove(WIT_POOL), WIT_POOL, "missing-corpus-file", {}),
        (append(WIT_TEST, "{broken\n"), WIT_TEST, "not-json", {"line": 13}),
        (
            append(WIT_POOL, json.dumps(passage("wit", 2))),
            WIT_POOL,
            "duplicate-passage-id",
            {"line": 13, "first_line": 3, "passage_id": "wit_2", "subset": "wit"},
        ),
        (lambda root: (root / TRAIN).write_text(""), TRAIN, "row-file-zero-bytes", {}),
        (
            lambda root: (root / WIT_TEST).write_bytes(b'\n{"a": "\xff\xfe"}\n'),
            WIT_TEST,
            "not-utf8",
            {"line": 2},
        ),
    ],
)
def test_bad_corpus_folder_is_an_error(root: Path, change, file: str, code: str, values: dict) -> None:
    change(root)
    with pytest.raises(DataError) as error:
        module(root)
    assert (error.value.code, str(error.value.path)) == (code, str(root / file))
    assert {name: error.value.values[name] for name in values} == values
    line = f":{values['line']}" if "line" in values else ""
    assert str(error.value).startswith(f"{root / file}{line}: ")
    assert "\n" not in str(error.value)


def test_invalid_options_are_errors(root: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder, options, code in (
        (tmp_path / "nowhere", {}, "missing-data-root"),
        (tmp_path / "empty", {}, "missing-corpus-file"),
        (root, {"subsets": ["okvqaa"]}, "subset-without-test-file"),
        (root, {"subsets": []}, "no-subset-named"),
        (root, {"subsets": ["wit", "wit"]}, "subset-named-twice"),
        (root, {"batch_size": 0}, "batch-size-out-of-range"),
        (root, {"negatives": -1}, "negatives-out-of-range"),
        (root, {"on_bad_row": "ignore"}, "unknown-on-bad-row"),
        (root, {"max_bad_fraction": 2}, "bad-fraction-out-of-range"),
        (root, {"validation": "none"}, "unknown-validation"),
    ):
        with pytest.raises(UserError) as error:
            module(folder, **options)
        assert error.value.code == code
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_image_error_names_row_and_subset(root: Path, workers: int) -> None:
    (root / "images/m2kr/images/sub/2.png").write_bytes(b"\x89PNG nonsense")
    data = module(root, num_workers=workers)
    wit_queries = data.test_dataloader()[1]
    with pytest.raises(DataError) as error:
        list(wit_queries)
    assert error.value.code == "image-format-unknown"
    assert "wit_test.jsonl:3 (subset wit): image " in error.value.message  # a loader worker passes on no values
    assert "sub/2.png " in error.value.message
    Image.new("RGB", (3, 3)).save(root / "images/m2kr/images/sub/2.png")
    assert len(list(data.test_dataloader()[1])) == 1

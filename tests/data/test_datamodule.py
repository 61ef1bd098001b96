"""From files to batches, on a folder with all that real files have; and one clear line for what is wrong with one."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from PIL import Image

from ret_lightning import M2KRDataModule
from ret_lightning.data.batch import label
from ret_lightning.data.glyphs.glyphs_datamodule import GlyphsDataModule
from ret_lightning.data.readers.indexed_rows import IndexedRows
from ret_lightning.data.readers.row_files import RowFiles
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


def test_training_batches_are_the_rows(root: Path) -> None:
    data = module(root)
    rows = read(root / TRAIN)
    tokenizer, transform = ClipTokenizer(), ImageTransform(16)
    loader = data.train_dataloader()
    order = [draw.row for batch in loader.batch_sampler for draw in batch]
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


def test_evaluation_loaders_are_pools_and_queries_in_turn(root: Path) -> None:
    data = module(root, eval_batch_size=5)
    subsets = data.evaluation_subsets("test")
    assert [s.name for s in subsets] == ["wit", "infoseek", "evqa", "okvqa"]  # the paper's order
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
def test_workers_change_nothing(root: Path, workers: int) -> None:
    augmentation = Augmentation(rotation=20, shift=0.1)
    alone = list(module(root, augmentation=augmentation, seed=3).train_dataloader())
    got = list(module(root, augmentation=augmentation, seed=3, num_workers=workers).train_dataloader())
    assert len(got) == len(alone) == 5
    for a, b in zip(alone, got, strict=True):
        assert torch.equal(a.queries.pixel_values, b.queries.pixel_values)
        assert torch.equal(a.labels, b.labels)
    plain = list(module(root, seed=3).train_dataloader())
    assert not torch.equal(plain[0].queries.pixel_values, alone[0].queries.pixel_values)


def test_subsets_by_name_choose_training_rows_too(root: Path) -> None:
    data = module(root, subsets=["okvqa", "wit"])
    assert [s.name for s in data.evaluation_subsets("val")] == ["okvqa", "wit"]
    seen = {name for batch in data.train_dataloader() for name in batch.subsets}
    assert seen == {"okvqa", "wit"}


def test_a_subset_field_wins_over_the_id(root: Path) -> None:
    rows = read(root / TRAIN)
    for row in rows:
        row["subset"] = "wit"
    write_lines(root / TRAIN, rows)
    data = module(root, subsets=["wit"])
    assert sum(len(batch) for batch in data.train_dataloader()) == 40


def test_val_or_test_takes_the_test_queries_where_there_is_no_file(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_lines(root / "jsonl/m2kr/val/okvqa_val.jsonl", [query("okvqa", 1)])
    with caplog.at_level(logging.INFO):
        data = module(root, validation="val_or_test")
    sizes = {s.name: len(s.queries) for s in data.evaluation_subsets("val")}
    assert sizes == {"wit": PASSAGES, "infoseek": PASSAGES, "evqa": PASSAGES, "okvqa": 1}
    assert "val/wit: 12 queries, 12 passages, the test queries" in caplog.text
    assert data.validated_on == {"wit": "test", "infoseek": "test", "evqa": "test", "okvqa": "val"}
    with pytest.raises(DataError) as error:
        module(root, validation="val")
    assert error.value.code == "missing-corpus-file"
    assert error.value.path.endswith("val/wit_val.jsonl")


def test_older_copies_keep_all_json_lines_in_one_folder(root: Path) -> None:
    flat = root / "all"
    flat.mkdir()
    for file in sorted((root / "jsonl").rglob("*.jsonl")):
        file.rename(flat / file.name)
    folders = dict.fromkeys(("train_folder", "val_folder", "test_folder", "passages_folder"), "all")
    data = module(root, **folders)
    assert [s.name for s in data.evaluation_subsets("test")] == ["wit", "infoseek", "evqa", "okvqa"]


def test_blank_lines_and_a_byte_order_mark_are_passed_over(root: Path) -> None:
    lines = (root / TRAIN).read_text().splitlines()
    (root / TRAIN).write_text("\ufeff" + "\n\n".join(lines) + "\n\n", encoding="utf-8")
    rows = IndexedRows(RowFiles([root / TRAIN]))
    assert [content.decode() for content, _ in rows] == lines
    assert [place.line for _, place in rows] == list(range(1, 80, 2))
    assert [rows[i] for i in range(len(rows))] == list(rows)


def test_unreachable_queries_are_counted_and_reported(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [query("wit", i) for i in range(4)]
    rows[1]["passage_id"] = "nowhere"
    rows[3]["passage_id"] = ["nowhere", 17]
    write_lines(root / "jsonl/m2kr/test/wit_test.jsonl", rows)
    data = module(root, subsets=["wit"])
    assert data.evaluation_subsets("test")[0].unreachable == [1, 3]
    assert "test/wit: 2 of 4 queries have none of their passages in the pool and count as misses" in caplog.text
    assert "data_id 1 at" in caplog.text
    assert "wit_test.jsonl:2" in caplog.text


def remove(relative: str):
    return lambda root: (root / relative).unlink()


def append(relative: str, text: str):
    def change(root: Path) -> None:
        with (root / relative).open("a") as file:
            file.write(text)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            remove(TRAIN),
            r"train/m2kr_up_train\.jsonl: no such file \(nor .*\.parquet\); data\.root=.* must hold the layout of ReT-M2KR",
        ),
        (remove("jsonl/m2kr/passages/wit_passages_test.jsonl"), r"passages/wit_passages_test\.jsonl: no such file"),
        (append("jsonl/m2kr/test/wit_test.jsonl", "{broken\n"), r"wit_test\.jsonl:13: not JSON"),
        (
            append("jsonl/m2kr/passages/wit_passages_test.jsonl", json.dumps(passage("wit", 2))),
            r"wit_passages_test\.jsonl:13: passage_id 'wit_2' is in the pool of wit twice, .*duplicate-passage-id",
        ),
        (lambda root: (root / TRAIN).write_text(""), r"m2kr_up_train\.jsonl: the file is empty"),
        (
            lambda root: (root / "jsonl/m2kr/test/wit_test.jsonl").write_bytes(b'\n{"a": "\xff\xfe"}\n'),
            r"wit_test\.jsonl:2: not UTF-8 text",
        ),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(root: Path, change, message: str) -> None:
    change(root)
    with pytest.raises(DataError, match=message) as error:
        module(root)
    assert "\n" not in str(error.value)


def test_a_root_or_subset_that_is_not_there(root: Path, tmp_path: Path) -> None:
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
def test_an_unreadable_image_names_file_row_and_subset(root: Path, workers: int) -> None:
    (root / "images/m2kr/images/sub/2.png").write_bytes(b"\x89PNG nonsense")
    data = module(root, num_workers=workers)
    wit_queries = data.test_dataloader()[1]
    with pytest.raises(DataError, match=r"wit_test\.jsonl:3 \(subset wit\): image .*sub/2\.png cannot be decoded"):
        list(wit_queries)
    Image.new("RGB", (3, 3)).save(root / "images/m2kr/images/sub/2.png")
    assert len(list(data.test_dataloader()[1])) == 1


def test_the_glyphs_corpus_is_read_by_the_same_reader(glyphs_root: Path) -> None:
    tokenizer, transform = ClipTokenizer(), ImageTransform(40)
    own = GlyphsDataModule(tokenizer, transform, batch_size=16, seed=5)
    own.prepare_data()
    own.setup("fit")
    other = M2KRDataModule(glyphs_root, tokenizer, transform, batch_size=16, seed=5, shared_passage_ids=True)
    other.setup("fit")
    assert own.files.root == glyphs_root
    assert len(own.evaluation_subsets("val")) >= 6
    for a, b in zip(own.train_dataloader(), other.train_dataloader(), strict=True):
        assert torch.equal(a.queries.pixel_values, b.queries.pixel_values)
        assert torch.equal(a.labels, b.labels)
        break


@pytest.mark.parametrize(("limit", "count"), [(None, 3), (2, 2), (0, 0)])
def test_negatives_come_after_the_positives_of_all_rows(tmp_path: Path, limit: int | None, count: int) -> None:
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


def test_validation_may_search_a_smaller_pool_that_holds_all_positives(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "m2kr")
    for size, left in ((1, None), (PASSAGES - 2, PASSAGES - 2), (PASSAGES, PASSAGES), (500, PASSAGES)):
        pools = []
        for _ in range(2):
            data = module(root, limit=4, validation_pool=size)
            (subset,) = [s for s in data.evaluation_subsets("val") if s.name == "wit"]
            (whole,) = [s for s in data.evaluation_subsets("test") if s.name == "wit"]
            pools.append([passage.passage_id for passage in subset.pool])
        wanted = {passage_id for query in subset.queries for passage_id in query.passage_ids}
        everything = [passage.passage_id for passage in whole.pool]
        assert len(everything) == PASSAGES
        assert pools[0] == pools[1] == [p for p in everything if p in set(pools[0])]
        assert wanted & set(everything) <= set(pools[0])
        assert len(pools[0]) == (left or len(wanted & set(everything)))

"""Tests of training through the data module: batches do not depend on file format, reading mode or number of workers."""

from __future__ import annotations

import base64
import gzip
import json
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch

from ret_lightning import M2KRDataModule
from ret_lightning.data.batch import TrainingBatch
from ret_lightning.data.epoch_position import Position, Span
from ret_lightning.errors import ConfigError, DataError
from ret_lightning.inputs import Augmentation, ClipTokenizer, ImageTransform
from ret_lightning.losses import PADDING
from tests.support.m2kr_folder import PASSAGES, TRAIN, read, write_folder, write_lines
from tests.support.row_files import READINGS, uniform


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "m2kr")


def module(root: Path, **options) -> M2KRDataModule:
    data = M2KRDataModule(
        root, ClipTokenizer(), ImageTransform(16), **{"batch_size": 8, "validation": "test", **options}
    )
    data.prepare_data()
    data.setup("fit")
    return data


def epoch(data: M2KRDataModule, number: int = 0) -> list[TrainingBatch]:
    loader = data.train_dataloader()
    loader.batch_sampler.set_epoch(number)
    return list(loader)


def rows(batches: list[TrainingBatch]) -> list[tuple]:
    """Return labels, token ids and subset of each row, which identify it."""
    return [
        (frozenset(labels) - {PADDING}, tuple(ids[mask].tolist()), subset)
        for batch in batches
        for labels, ids, mask, subset in zip(
            batch.labels.tolist(), batch.queries.input_ids, batch.queries.attention_mask, batch.subsets, strict=True
        )
    ]


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("one_subset", [False, True])
def test_batches_do_not_depend_on_number_of_workers(root: Path, reading: str, one_subset: bool) -> None:
    options = {
        "reading": reading, "augmentation": Augmentation(rotation=20, shift=0.1), "seed": 3, "one_subset_batches": one_subset,
        "instructions": ["One:", "Two:", "Three:"], "repeat": {"okvqa": 2.5, "wit": 0.5},
    }  # fmt: skip
    expected_batches = epoch(module(root, **options), 2)
    for workers in (1, 2):
        got = epoch(module(root, **options, num_workers=workers), 2)
        assert len(got) == len(expected_batches) > 4
        for a, b in zip(expected_batches, got, strict=True):
            assert torch.equal(a.queries.pixel_values, b.queries.pixel_values)
            assert torch.equal(a.queries.input_ids, b.queries.input_ids)
            assert torch.equal(a.labels, b.labels)
            assert a.subsets == b.subsets
    assert rows(epoch(module(root, **options), 1)) != rows(expected_batches)
    if one_subset:
        assert all(len(set(batch.subsets)) == 1 for batch in expected_batches)


def test_copies_of_a_row_are_augmented_independently(root: Path) -> None:
    write_lines(root / TRAIN, read(root / TRAIN)[:1])
    for reading in READINGS:
        data = module(root, reading=reading, repeat={"okvqa": 3}, augmentation=Augmentation(rotation=20), batch_size=1)
        pictures = [batch.queries.pixel_values for batch in epoch(data)]
        assert len(pictures) == 3
        assert not torch.equal(pictures[0], pictures[1])
        assert not torch.equal(pictures[1], pictures[2])


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("kind", ["gz", "zst", "parquet", "parts", "glob", "mixed"])
def test_all_file_formats_yield_the_same_rows(root: Path, reading: str, kind: str) -> None:
    expected = Counter(rows(epoch(module(root, reading=reading))))
    folder = root / "jsonl/m2kr"
    training = read(root / TRAIN)
    plain, names = root / TRAIN, "m2kr_up_train.jsonl"
    if kind in ("gz", "zst"):
        for file in folder.rglob("*.jsonl"):
            content = file.read_bytes()
            packed = gzip.compress(content) if kind == "gz" else pyarrow.Codec("zstd").compress(content, asbytes=True)
            file.with_name(f"{file.name}.{kind}").write_bytes(packed)
            file.unlink()
        names = (
            f"m2kr_up_train.jsonl.{kind}" if reading == "indexed" else names
        )  # streaming also finds it by the uncompressed name
    elif kind == "parquet":
        for file in folder.rglob("*.jsonl"):
            table = pyarrow.Table.from_pylist([uniform(row) for row in read(file)])
            pyarrow.parquet.write_table(table, file.with_suffix(".parquet"), row_group_size=7)
            file.unlink()
        names = "m2kr_up_train.parquet"
    else:
        plain.unlink()
        write_lines(plain.with_name("b.jsonl"), training[:13])
        rest = "".join(json.dumps(row) + "\n" for row in training[13:]).encode()
        if kind == "mixed":
            plain.with_name("a.jsonl.gz").write_bytes(gzip.compress(rest))
            names = ["a.jsonl.gz", "b.jsonl"]
        else:
            plain.with_name("a.jsonl").write_bytes(rest)
            names = ["a.jsonl", "b.jsonl"] if kind == "parts" else "*.jsonl"
    data = module(root, reading=reading, train_file=names)
    assert Counter(rows(epoch(data))) == expected
    subsets = data.evaluation_subsets("val")
    assert [(s.name, len(s.queries), len(s.pool)) for s in subsets] == [
        (name, PASSAGES, PASSAGES) for name in ("wit", "infoseek", "evqa", "okvqa")
    ]
    assert subsets[1].queries[0].answers == ("word0", "unheard of")


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_embedded_images_equal_image_files(root: Path, reading: str, kind: str) -> None:
    options = {"reading": reading, "seed": 2}
    from_files = {row: batch for batch in epoch(module(root, batch_size=1, **options)) for row in rows([batch])}
    images = root / "images/m2kr/images"
    for file in (root / "jsonl/m2kr").rglob("*.jsonl"):
        filled = [uniform(row) for row in read(file)]
        for row in filled:
            for path, inside in (("image_path", "image"), ("passage_image_path", "passage_image")):
                row[inside] = (images / row[path]).read_bytes() if row.get(path) else None
                row[path] = None
        if kind == "parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(filled), file.with_suffix(".parquet"))
            file.unlink()
        else:
            write_lines(file, [json.dumps(row, default=lambda b: base64.b64encode(b).decode()) for row in filled])
    data = module(root, train_file=f"m2kr_up_train.{kind}", batch_size=1, **options)
    got = epoch(data)
    assert len(got) == 40
    for batch in got:
        expected = from_files[rows([batch])[0]]
        assert torch.equal(batch.queries.pixel_values, expected.queries.pixel_values)
        assert torch.equal(batch.passages.pixel_values, expected.passages.pixel_values)
    data.setup("test")
    assert sum(len(batch.inputs.image_rows) for loader in data.test_dataloader() for batch in loader) > 40


@pytest.mark.parametrize("reading", READINGS)
def test_broken_embedded_image_error_names_row(root: Path, reading: str) -> None:
    lines = read(root / TRAIN)
    lines[17] |= {"image_path": None, "image": base64.b64encode(b"nonsense").decode()}
    write_lines(root / TRAIN, lines)
    with pytest.raises(DataError) as error:
        epoch(module(root, reading=reading))
    assert (error.value.code, error.value.kind) == ("image-format-unknown", "unreadable_image")
    assert "m2kr_up_train.jsonl:18 (subset wit): " in error.value.message


# A single case with a worker: after an error, torch waits five seconds per worker.
@pytest.mark.parametrize(("reading", "workers"), [("indexed", 0), ("streaming", 0), ("streaming", 1)])
def test_broken_row_error_names_line(root: Path, reading: str, workers: int) -> None:
    lines = (root / TRAIN).read_text().splitlines()
    lines[29] = "{broken"
    (root / TRAIN).write_text("\n\n" + "\n".join(lines))
    with pytest.raises(DataError) as error:
        epoch(module(root, reading=reading, num_workers=workers))
    assert error.value.code == "not-json"
    assert "m2kr_up_train.jsonl:32: " in error.value.message
    assert workers or error.value.kind == "bad_json"  # a loader worker passes on the message and the code only


@pytest.mark.parametrize("reading", READINGS)
def test_subsets_mixture_and_limit(root: Path, reading: str) -> None:
    data = module(root, reading=reading, subsets=["okvqa", "wit"], repeat={"wit": 2}, limit=12)
    training = [row for row in read(root / TRAIN) if row["data_id"].split("_")[0].lower() in ("okvqa", "wit")][:12]
    counts = Counter(name for batch in epoch(data) for name in batch.subsets)
    assert (
        counts
        == {"okvqa": 6, "wit": 12}
        == Counter(
            {
                "okvqa": sum("OKVQA" in r["data_id"] for r in training),
                "wit": 2 * sum("WIT" in r["data_id"] for r in training),
            }
        )
    )
    sizes = {s.name: (len(s.queries), len(s.pool)) for s in data.evaluation_subsets("val")}
    assert sizes == {"okvqa": (12, PASSAGES), "wit": (12, PASSAGES)}
    few = module(root, reading=reading, limit=5)
    assert {(len(s.queries), len(s.pool)) for s in few.evaluation_subsets("val")} == {(5, PASSAGES)}
    weighted = module(root, reading=reading, weights={"evqa": 1, "okvqa": 1})
    assert set(Counter(name for batch in epoch(weighted) for name in batch.subsets)) == {"evqa", "okvqa"}


@pytest.mark.parametrize("reading", READINGS)
def test_instructions_are_sampled_in_training_only(root: Path, reading: str) -> None:
    tokenizer = ClipTokenizer()
    templates = {"okvqa": ["Answer this:", "Say:"], "evqa": ["Look:"]}
    data = module(root, reading=reading, instructions=templates, batch_size=1)
    given = {row["data_id"].split("_")[0].lower() + str(row["question"]): row for row in read(root / TRAIN)}
    used = Counter()
    for number in range(3):
        for _, ids, subset in rows(epoch(data, number)):
            texts = [
                f"{instruction} {row['question']}" if row["question"] else instruction
                for row in given.values()
                for instruction in templates.get(subset, [row["instruction"]])
                if row["data_id"].lower().startswith(subset)
            ]
            matches = [text for text in texts if tuple(tokenizer([text])[0][0].tolist()) == ids]
            assert len(matches) == 1, subset
            used[subset, matches[0].split(":")[0]] += 1
    assert {key for key in used if key[0] == "okvqa"} == {("okvqa", "Answer this"), ("okvqa", "Say")}
    assert {key for key in used if key[0] in ("evqa", "wit")} == {("evqa", "Look"), ("wit", "Find the passage")}
    subsets = {s.name: s for s in data.evaluation_subsets("val")}
    assert {query.instruction for query in subsets["okvqa"].queries} == {"Answer this:"}
    assert {query.instruction for query in subsets["wit"].queries} == {"Find the passage:"}
    assert subsets["okvqa"].queries[1].text == "Answer this: What is fact 1?"
    with pytest.raises(ConfigError) as error:
        module(root, reading=reading, instructions={"okqva": ["Say:"]})
    assert (error.value.code, error.value.key, error.value.found) == ("unknown-subset", "data.instructions", "okqva")
    assert "did you mean okvqa?" in error.value.message


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("workers", [0, 1])
def test_loaders_do_not_use_global_random_state(root: Path, reading: str, workers: int) -> None:
    data = module(root, reading=reading, num_workers=workers)
    before = torch.get_rng_state()
    next(iter(data.train_dataloader()))
    for loader in data.val_dataloader()[:2]:
        next(iter(loader))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("reading", READINGS)
def test_loader_resumes_from_position(root: Path, reading: str) -> None:
    data = module(root, reading=reading, num_workers=1, augmentation=Augmentation(rotation=20))
    whole = epoch(data, 1)
    loader = data.train_dataloader()
    loader.batch_sampler.set_epoch(1)
    loader.batch_sampler.resume(Position(1, (Span(1, data.batch_size, 3),)))
    rest = list(loader)
    assert len(rest) == len(whole) - 3
    for a, b in zip(rest, whole[3:], strict=True):
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.queries.pixel_values, b.queries.pixel_values)


def test_texts_are_tokenized_once_per_side_and_batch(root: Path) -> None:
    calls = []
    tokenizer = ClipTokenizer()

    def counted(texts):
        calls.append(len(texts))
        return tokenizer(texts)

    data = M2KRDataModule(root, counted, ImageTransform(16), batch_size=8, validation="test")
    data.setup("fit")
    assert len(list(data.train_dataloader())) == 5
    assert calls == [8] * 10


@pytest.mark.parametrize("reading", READINGS)
def test_missing_training_file_is_an_error(root: Path, reading: str) -> None:
    with pytest.raises(DataError) as error:
        module(root, reading=reading, train_file="part-*.jsonl")
    assert (error.value.code, error.value.key, error.value.found, error.value.path) == (
        "row-pattern-without-match", "data.train_file", "part-*.jsonl", str((root / TRAIN).parent),
    )  # fmt: skip
    assert "m2kr_up_train" in error.value.message  # lists the files that exist
    with pytest.raises(DataError) as error:
        module(root, reading=reading, train_file=["m2kr_up_train.jsonl", "nothing.jsonl"])
    assert error.value.code == "row-file-missing"
    assert error.value.path.endswith("nothing.jsonl")
    (root / TRAIN).with_name("train.json").write_text("{}\n")
    with pytest.raises(DataError) as error:
        module(root, reading=reading, train_file="train.json")
    assert error.value.code == "row-file-suffix-unknown"
    assert error.value.path.endswith("train.json")
    assert ".jsonl" in error.value.allowed
    write_lines(root / TRAIN, read(root / TRAIN)[:1])
    data = module(root, reading=reading)
    with pytest.raises(DataError) as error:
        list(data._train.batches(8, rank=0, world_size=2))
    assert error.value.code == {"indexed": "too-few-training-rows", "streaming": "stream-too-short"}[reading]
    assert error.value.ranks == 2

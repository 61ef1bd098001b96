"""Labels and extra columns of a training batch."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ret_lightning import M2KRDataModule
from ret_lightning.data.batch import TrainingBatch, label
from ret_lightning.errors import ConfigError
from ret_lightning.inputs import ClipTokenizer, ImageTransform
from ret_lightning.losses import PADDING
from tests.support.m2kr_folder import TRAIN, write_folder, write_lines


def row(data_id: str, passage_id: object, **fields: object) -> dict:
    return {"data_id": data_id, "question": data_id, "passage_id": passage_id, "passage_text": "text", **fields}


def batch_of(folder: Path, rows: list[dict], **options: object) -> TrainingBatch:
    """Return the rows as one batch, in any order."""
    root = write_folder(folder)
    write_lines(root / TRAIN, rows)
    data = M2KRDataModule(root, ClipTokenizer(), ImageTransform(16), batch_size=len(rows), **options)
    data.setup("fit")
    return next(iter(data.train_dataloader()))


def by_subset(batch: TrainingBatch) -> dict[str, list[int]]:
    """Return the labels of the query of each subset, without padding."""
    rows = zip(batch.subsets, batch.labels.tolist(), strict=True)
    return {subset: [label for label in labels if label != PADDING] for subset, labels in rows}


@pytest.mark.parametrize("reading", ["indexed", "streaming"])
def test_labels_of_queries_and_passages(tmp_path: Path, reading: str) -> None:
    negatives = [{"passage_id": name, "passage_text": "no"} for name in ("p2", "p9")]
    rows = [
        row("wit_0", ["p1", "p2", 3], negative_passages=negatives),
        row("evqa_0", "p2"),
        row("okvqa_0", ["p4", "p1"]),
    ]
    batch = batch_of(tmp_path, rows, reading=reading)
    assert batch.labels.shape == (3, 3)
    assert by_subset(batch) == {
        "wit": [label("wit", name) for name in ("p1", "p2", "3")],
        "evqa": [label("evqa", "p2")],
        "okvqa": [label("okvqa", name) for name in ("p4", "p1")],
    }
    firsts = {"wit": "p1", "evqa": "p2", "okvqa": "p4"}
    expected = [label(subset, firsts[subset]) for subset in batch.subsets]
    assert batch.passage_labels.tolist() == [*expected, label("wit", "p2"), label("wit", "p9")]


@pytest.mark.parametrize("ids", [(12, "12"), ("12", 12.0), (["12", "a"], "12")])
def test_equal_ids_of_subsets_have_different_labels(tmp_path: Path, ids: tuple) -> None:
    batch = batch_of(tmp_path, [row("wit_0", ids[0]), row("okvqa_0", ids[1])])
    found = by_subset(batch)
    assert (found["wit"][0], found["okvqa"][0]) == (label("wit", "12"), label("okvqa", "12"))
    assert not set(found["wit"]) & set(found["okvqa"])


def test_shared_ids_have_one_label(tmp_path: Path) -> None:
    rows = [
        row("wit_0", ["12", "a"], negative_passages=[{"passage_id": "b", "passage_text": "no"}]),
        row("okvqa_0", 12),
    ]
    batch = batch_of(tmp_path, rows, shared_passage_ids=True)
    found = by_subset(batch)
    assert found["wit"][0] == found["okvqa"][0]
    assert len({*found["wit"], *batch.passage_labels.tolist()}) == 3


def test_rows_without_subset_share_unknown(tmp_path: Path) -> None:
    batch = batch_of(tmp_path, [row("a0", "p"), row("b0", "p"), row("wit_0", "p", subset="WIT")])
    unknown = [labels for subset, labels in zip(batch.subsets, batch.labels.tolist(), strict=True) if subset != "wit"]
    assert unknown == [[label("unknown", "p")]] * 2
    assert by_subset(batch)["wit"] == [label("wit", "p")]


def test_labels_of_equal_concatenations_differ() -> None:
    parts = ["", "1", "2", "12", "1:", ":1", "1:1", "2:1", "\0", "a", "aa"]
    pairs = list(product(parts, parts))
    assert len({label(*pair) for pair in pairs}) == len(pairs)


@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"])))
def test_label_is_never_padding(subset: str, passage_id: str) -> None:
    assert 0 <= label(subset, passage_id) < 2**63


@pytest.mark.parametrize("reading", ["indexed", "streaming"])
@pytest.mark.parametrize("form", ["list", "objects"])
def test_extra_columns_match_rows_and_passages(tmp_path: Path, reading: str, form: str) -> None:
    """Each score is computed from the row and the passage id, so that a misplaced score is detected."""
    scores = {f"n{i}": float(i) for i in range(6)}

    def with_scores(number: int, names: list[str]) -> dict:
        own = [{"passage_id": name, "passage_text": "no", "score": 10 * number + scores[name]} for name in names]
        score = 10.0 * number if form == "objects" else [10 * number, *(each.pop("score") for each in own)]
        tail = [float(i) for i in range(number)]
        return row(f"wit_{number}", f"p{number}", negative_passages=own, score=score, weight=number, tail=tail)

    rows = [with_scores(1, ["n0", "n1", "n2"]), with_scores(2, []), with_scores(3, ["n3", "n4", "n5"])]
    names = {label("wit", f"p{n}"): 0.0 for n in (1, 2, 3)} | {label("wit", name): v for name, v in scores.items()}
    for negatives in (None, 1, 0):
        batch = batch_of(
            tmp_path / str(negatives), rows, reading=reading, negatives=negatives, columns=["weight", "tail"],
            passage_columns=["score"], validation="test",
        )  # fmt: skip
        weight = batch.extra["weight"]
        assert weight.dtype == batch.extra["score"].dtype == torch.float32
        assert batch.passage_rows[:3].tolist() == [0, 1, 2]
        assert len(batch.passage_rows) == len(batch.passage_labels) == {None: 9, 1: 5, 0: 3}[negatives]
        expected = [
            10 * weight[r] + names[p] for r, p in zip(batch.passage_rows, batch.passage_labels.tolist(), strict=True)
        ]
        assert batch.extra["score"].tolist() == expected
        tails = [[value for value in tail if value == value] for tail in batch.extra["tail"].tolist()]
        assert tails == [[float(i) for i in range(int(n))] for n in weight.tolist()]
        assert batch.to("meta").extra["tail"].shape == (3, 3)


def test_column_named_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        batch_of(tmp_path, [row("wit_0", "p")], columns=["a", "b"], passage_columns=["b"])
    assert (error.value.code, error.value.found) == ("column-named-twice", ("b",))

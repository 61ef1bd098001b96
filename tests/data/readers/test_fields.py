"""Missing values, infinite numbers and floats without a fractional part, in all readers of rows."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ret_lightning import M2KRDataModule
from ret_lightning.data.bad_rows import BadRow
from ret_lightning.data.checks.corpus_check import CorpusCheck
from ret_lightning.data.readers.fields import RowFields
from ret_lightning.data.readers.indexed_rows import IndexedRows
from ret_lightning.data.readers.row_files import RowFiles
from ret_lightning.data.readers.source_location import SourceLocation
from ret_lightning.data.rows import M2KR_ROWS, parse_pair, parse_passage, parse_query
from ret_lightning.errors import DataError
from ret_lightning.inputs import ClipTokenizer, ImageTransform
from ret_lightning.retrieval.metrics.relevance import has_answers
from ret_lightning.search.answer import _read_queries
from ret_lightning.search.passages import read_passages
from tests.support.m2kr_folder import TRAIN, read, write_folder

LOCATION = SourceLocation(Path("rows.jsonl"), 7)
PARSERS = (parse_query, parse_pair, parse_passage)
ROW = {
    "data_id": "wit_1",
    "subset": "wit",
    "instruction": "Find it:",
    "question": "What is this?",
    "image_path": "a/b.png",
    "image": {"bytes": None, "path": "c.png"},
    "passage_id": "p1",
    "answer": ["yes", {"wikidata": "Q42", "range": [1, 2]}],
    "passage_text": "A text.",
    "passage_image_path": "d.png",
    "passage_image": None,
    "negative_passages": [{"passage_id": "n", "passage_text": "No.", "passage_image_path": None}],
    "unknown": {"nested": [1, {"deeper": 2}]},
}


def outcome(parse: Callable, content: object) -> tuple:
    """Return the parsed row, or the code, kind, message and values of the error."""
    try:
        return "row", parse(content, LOCATION)
    except DataError as error:
        return error.code, error.kind, error.message, repr(error.values)


def paths(value: Any, path: tuple = ()) -> list[tuple]:
    """Return the paths of all nested values."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [inner for key, child in children for inner in paths(child, (*path, key))]


def replaced(value: Any, path: tuple, new: Any) -> Any:
    """Return a copy of a nested value with another value at a path."""
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


def without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nan(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_nan(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


@pytest.mark.parametrize("path", paths(ROW), ids=str)
def test_nan_is_null(path: tuple) -> None:
    null, nan = replaced(ROW, path, None), replaced(ROW, path, math.nan)
    assert "NaN" in json.dumps(nan)
    for parse in PARSERS:
        expected = outcome(parse, json.dumps(null))
        for content in (json.dumps(nan), json.dumps(nan).encode(), nan, null):
            assert outcome(parse, content) == expected
    for content in (json.dumps(nan).encode(), nan):
        assert M2KR_ROWS.parse_subset(content) == M2KR_ROWS.parse_subset(json.dumps(null))


@pytest.mark.parametrize("path", paths(ROW), ids=str)
@pytest.mark.parametrize("number", [math.inf, -math.inf])
def test_infinite_number_is_refused(path: tuple, number: float) -> None:
    row = replaced(ROW, path, number)
    for parse in PARSERS:
        for content in (json.dumps(row), json.dumps(row).encode(), row):
            with pytest.raises(DataError) as error:
                parse(content, LOCATION)
            found = error.value
            assert (found.code, found.path, found.line) == ("infinite-number", LOCATION.file, 7)
            assert (found.key, found.found) == (path[0], number)
            assert found.message.startswith(f"rows.jsonl:7: field {path[0]}: ")
    assert M2KR_ROWS.parse_subset(row) == (None, "")


@pytest.mark.parametrize("field", ["data_id", "passage_id", "answer", "question"])
def test_number_too_large_for_float_is_refused(field: str) -> None:
    """1e999 is valid JSON, which Python reads as infinity."""
    line = json.dumps({**ROW, field: "number"}).replace('"number"', "1e999")
    with pytest.raises(DataError) as error:
        parse_query(line, LOCATION)
    assert (error.value.code, error.value.key, error.value.found) == ("field-type", field, math.inf)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (1990.0, ("1990",)),
        ([1990.0, -3.0, 1e20], ("1990", "-3", "100000000000000000000")),
        ([1.5, 7, "1990.0", "nan", "None"], ("1.5", "7", "1990.0", "nan", "None")),
        ([{"wikidata": 42.0}, {"wikidata": "Q1"}], ("42", "Q1")),
        (["a", None, math.nan, {"wikidata": None}, {"wikidata": math.nan}, "b"], ("a", "b")),
        ([None, math.nan, {"wikidata": None}], ()),
        (math.nan, ()),
        (None, ()),
        ([], ()),
    ],
)
def test_answers_are_strings(answer: object, expected: tuple[str, ...]) -> None:
    row = {**ROW, "answer": answer}
    for content in (row, json.dumps(row)):
        query = parse_query(content, LOCATION)
        assert query.answers == expected
        assert has_answers([query.answers]).tolist() == [bool(expected)]


def test_missing_negative_is_skipped() -> None:
    negatives = [None, {"passage_id": 7.0, "passage_text": "No."}, math.nan]
    pair = parse_pair({**ROW, "negative_passages": negatives}, LOCATION)
    assert [negative.passage_id for negative in pair.negatives] == ["7"]


numbers = st.floats(allow_infinity=False) | st.integers(-5, 5) | st.none() | st.text(max_size=4)
values = st.recursive(
    numbers,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["wikidata", "bytes", "path", "passage_id"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(sorted(ROW)), values, max_size=4), st.sampled_from(PARSERS))
def test_any_nan_is_read_as_null(fields: dict, parse: Callable) -> None:
    row = {**ROW, **fields}
    expected = outcome(parse, without_nan(row))
    assert outcome(parse, row) == expected
    assert outcome(parse, json.dumps(row)) == expected


# The readers of files.


def write_parquet(file: Path, rows: list[dict]) -> None:
    """Write rows with pandas, which stores columns of numbers with missing values, and without values, as floats."""
    frame = pandas.DataFrame(rows)
    for name in frame.columns[frame.isna().all()]:
        frame[name] = frame[name].astype("float64")
    frame.to_parquet(file.with_suffix(".parquet"), row_group_size=3)


def training_rows(**changes: Callable[[int], Any]) -> list[dict]:
    """Return eight rows with image paths; each change is a function from the row number to the value of a field."""
    rows = [
        {
            "data_id": f"wit_{i}", "question": f"what {i}", "image_path": f"sub/{i}.png", "passage_id": i,
            "passage_text": f"text {i}", "passage_image_path": f"sub/{i}.png", "answer": 1990 + i,
        }
        for i in range(8)
    ]  # fmt: skip
    return [row | {name: make(i) for name, make in changes.items()} for i, row in enumerate(rows)]


GAPS = {
    "answer": lambda i: None if i % 2 else 1990 + i,
    "question": lambda i: None,
    "passage_text": lambda i: None,
    "image_path": lambda i: None,
    "passage_image_path": lambda i: None,
}


@pytest.mark.parametrize("name", GAPS)
def test_missing_values_in_parquet_column(tmp_path: Path, name: str) -> None:
    rows = training_rows(**{name: GAPS[name]})
    write_parquet(tmp_path / "rows", rows)
    files = RowFiles([tmp_path / "rows.parquet"])
    column = pyarrow.parquet.read_schema(tmp_path / "rows.parquet").field(name)
    assert column.type == pyarrow.float64()
    expected = [parse_pair(json.dumps(row), LOCATION) for row in rows]
    streamed = [(row.content, files.location(row)) for part in files.spans() for row in files.read(part)]
    for read_rows in (list(files), list(IndexedRows(files)), streamed):
        for one, (content, location) in zip(expected, read_rows, strict=True):
            pair = parse_pair(content, location)
            assert (pair.query.text, pair.query.image, pair.query.answers) == (
                one.query.text,
                one.query.image,
                one.query.answers,
            )
            assert (pair.passage.text, pair.passage.image) == (one.passage.text, one.passage.image)


@pytest.mark.parametrize("missing", [None, math.nan])
@pytest.mark.parametrize("first", ["gaps", "values"])
def test_parquet_column_without_values_in_one_file(tmp_path: Path, missing: float | None, first: str) -> None:
    gaps = pyarrow.table(
        {"data_id": ["a", "b"], "question": pyarrow.array([missing] * 2, pyarrow.float64()), "n": [1.0, missing]}
    )
    texts = pyarrow.table({"data_id": ["c", "d"], "question": ["what", None], "n": [2, 3]})
    tables = {"gaps": gaps, "values": texts}
    names = sorted(tables, reverse=first != "gaps")
    for number, name in enumerate(names):
        # Some writers omit minimum and maximum of a column with NaN.
        pyarrow.parquet.write_table(tables[name], tmp_path / f"{number}.parquet", write_statistics=name == "values")
    files = RowFiles.named(tmp_path, "*.parquet", "rows")
    for read_rows in (IndexedRows(files), files):
        found = {content["data_id"]: content for content, _ in read_rows}
        questions = {name: without_nan(content)["question"] for name, content in found.items()}
        assert questions == {"a": None, "b": None, "c": "what", "d": None}
        assert {name: without_nan(content)["n"] for name, content in found.items()} == {
            "a": 1, "b": None, "c": 2, "d": 3,
        }  # fmt: skip


def module(root: Path, **options: object) -> M2KRDataModule:
    data = M2KRDataModule(
        root, ClipTokenizer(), ImageTransform(16), **{"batch_size": 8, "validation": "test", **options}
    )
    data.prepare_data()
    data.setup("fit")
    return data


@pytest.mark.parametrize("reading", ["indexed", "streaming"])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_training_and_evaluation_with_missing_values(tmp_path: Path, reading: str, kind: str) -> None:
    root = write_folder(tmp_path / "m2kr", subsets=("wit",))
    rows = training_rows(answer=GAPS["answer"], question=GAPS["question"], passage_text=GAPS["passage_text"])
    test = root / "jsonl/m2kr/test/wit_test.jsonl"
    for file in (root / TRAIN, test):
        file.unlink()
        if kind == "parquet":
            write_parquet(file, rows)
        else:
            lines = [json.dumps({name: math.nan if v is None else v for name, v in row.items()}) for row in rows]
            file.write_text("\n".join(lines) + "\n")
    data = module(root, reading=reading, train_file=f"m2kr_up_train.{kind}")
    (batch,) = data.train_dataloader()
    assert (len(batch), batch.queries.text_rows.tolist(), batch.passages.text_rows.tolist()) == (8, [], [])
    (subset,) = data.evaluation_subsets("val")
    assert [query.answers for query in subset.queries] == [() if i % 2 else (str(1990 + i),) for i in range(8)]


def test_infinite_number_in_files_is_reported(tmp_path: Path) -> None:
    """In training, evaluation, ret-check, and the files of ret-index and ret-search."""
    root = write_folder(tmp_path / "m2kr", subsets=("wit",))
    rows = read(root / TRAIN)
    rows[4]["extra"] = [math.inf]
    (root / TRAIN).write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = module(root, on_bad_row="skip", max_bad_fraction=1, batch_size=len(rows))
    (batch,) = data.train_dataloader()
    (bad,) = batch.bad_rows
    assert (len(batch), bad.kind) == (len(rows) - 1, "not_finite")
    assert bad.message.startswith(f"{root / TRAIN}:5: field extra: ")
    assert "Infinity" in bad.message
    assert (
        BadRow.of(DataError("a", "b", code="c-d"), bad.location).text == "a"
    )  # codes are printed at the end of a line only
    report = CorpusCheck(module(root), "none", workers=1, progress=False).run()
    assert [(finding.where, finding.kind, finding.first) for finding in report.problems] == [
        ("training", "not_finite", [bad.message])
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text('{"data_id": 1, "passage_id": "p", "question": "x", "passage_text": "x", "n": -Infinity}\n')
    for read_file in (_read_queries, read_passages):
        with pytest.raises(DataError) as error:
            read_file(str(file))
        assert (error.value.code, error.value.line, error.value.key) == ("infinite-number", 1, "n")


@pytest.mark.parametrize(("line", "column"), [(b"{broken", 2), (b'{"a": 1} x', 10), (b'{"a": tru}', 7), (b"", 1)])
def test_json_error_has_line_of_file(line: bytes, column: int) -> None:
    with pytest.raises(DataError) as error:
        parse_passage(line, LOCATION)
    assert (error.value.code, error.value.line, error.value.column) == ("not-json", 7, column)
    assert re.fullmatch(r"rows\.jsonl:7: [^:]+: [^:]+ at column \d+", error.value.message)  # no line of the row itself


def test_row_fields_place_is_deprecated() -> None:
    row = RowFields({}, LOCATION)
    with pytest.warns(FutureWarning, match="location"):
        assert row.place == row.location == LOCATION

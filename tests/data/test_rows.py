"""Parsing of rows, and errors of invalid rows."""

from __future__ import annotations

import base64
import json
import math
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ret_lightning.data.bad_rows import DeferredLocation
from ret_lightning.data.readers.source_location import ByteLocation, SourceLocation
from ret_lightning.data.rows import ExtraColumns, parse_pair, parse_passage, parse_query
from ret_lightning.errors import DataError

LOCATION = SourceLocation(Path("folder/file.jsonl"), 7)
GOOD = {
    "data_id": "q1",
    "instruction": "Find it:",
    "question": "What is this?",
    "image_path": "a/b.png",
    "passage_id": ["p1", 2],
    "answer": ["yes", {"wikidata": "Q42"}, {"wikidata": 7, "range": [1, 2]}, 3],
    "passage_text": "A text.",
    "passage_image_path": None,
    "anything": [1, {"else": None}],
}


def changed(**fields) -> str:
    return json.dumps({**GOOD, **fields})


def without(*names: str) -> str:
    return json.dumps({k: v for k, v in GOOD.items() if k not in names})


def test_parse_query() -> None:
    query = parse_query(changed(), LOCATION)
    assert query.data_id == "q1"
    assert query.text == "Find it: What is this?"
    assert query.image_path == "a/b.png"
    assert query.passage_ids == ("p1", "2")
    assert query.answers == ("yes", "Q42", "7", "3")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"question": None}, "Find it:"),
        ({"question": "  "}, "Find it:"),
        ({"instruction": None}, "What is this?"),
        ({"instruction": "", "question": None}, None),
    ],
)
def test_query_text_joins_instruction_and_question(fields: dict, text: str | None) -> None:
    assert parse_query(changed(**fields), LOCATION).text == text


@pytest.mark.parametrize(("value", "ids"), [(12, ("12",)), ("12", ("12",)), (12.0, ("12",)), ([1, "1", 2], ("1", "2"))])
def test_ids_are_strings(value, ids: tuple[str, ...]) -> None:
    assert parse_query(changed(passage_id=value), LOCATION).passage_ids == ids


@pytest.mark.parametrize("answer", [None, []])
def test_missing_answers_are_empty(answer) -> None:
    assert parse_query(changed(answer=answer), LOCATION).answers == ()
    assert parse_query(without("answer"), LOCATION).answers == ()


def test_parse_passage_and_pair() -> None:
    passage = parse_passage(
        json.dumps({"passage_id": 3, "passage_text": None, "passage_image_path": "x.jpg"}), LOCATION
    )
    assert (passage.passage_id, passage.text, passage.image_path) == ("3", None, "x.jpg")
    pair = parse_pair(changed(), LOCATION)
    assert (pair.passage.passage_id, pair.passage.text, pair.passage.image_path) == ("p1", "A text.", None)


@pytest.mark.parametrize(
    ("line", "code", "values"),
    [
        ("{", "not-json", {}),
        (b'{"data_id": "\xff"}', "not-utf8", {"byte": 13}),
        ("[1]", "row-not-object", {"found": [1]}),
        ("null", "row-not-object", {"found": None}),
        ("NaN", "row-not-object", {"found": None}),
        ("[Infinity]", "row-not-object", {"found": [math.inf]}),
        ('{"data_id": Infinity, ', "not-json", {}),
        (without("data_id"), "missing-field", {"key": "data_id"}),
        (without("passage_id"), "missing-field", {"key": "passage_id"}),
        (changed(passage_id=[]), "empty-id-list", {"key": "passage_id"}),
        (changed(passage_id=None), "field-type", {"key": "passage_id", "found": None}),
        (changed(passage_id=["p1", None]), "field-type", {"key": "passage_id", "found": None}),
        (changed(passage_id=1.5), "field-type", {"key": "passage_id", "found": 1.5}),
        (changed(passage_id=[True]), "field-type", {"key": "passage_id", "found": True}),
        (changed(data_id=" "), "field-type", {"key": "data_id", "found": " "}),
        (changed(question=5), "field-type", {"key": "question", "found": 5}),
        (changed(image_path=["a.png"]), "field-type", {"key": "image_path", "found": ["a.png"]}),
        (changed(image_path="/etc/passwd"), "path-outside", {"key": "image_path", "found": "/etc/passwd"}),
        (changed(image_path="a\0.png"), "path-null-character", {"key": "image_path", "found": "a\0.png"}),
        (changed(image_path="a/../../b.png"), "path-outside", {"key": "image_path", "found": "a/../../b.png"}),
        (changed(answer=[{"label": "x"}]), "answer-without-wikidata", {"key": "answer", "found": {"label": "x"}}),
        (changed(answer=[["x"]]), "field-type", {"key": "answer", "found": ["x"]}),
        (changed(answer=[True]), "field-type", {"key": "answer", "found": True}),
        (changed(instruction=None, question=None, image_path=None), "empty-query", {}),
        (changed(question="\ud800"), "half-surrogate", {"key": "question", "found": "\ud800"}),
    ],
)
def test_row_error_has_code_and_values(line: bytes | str, code: str, values: dict) -> None:
    with pytest.raises(DataError) as error:
        parse_query(line, LOCATION)
    assert error.value.code == code
    assert {name: error.value.values[name] for name in ("path", "line", *values)} == {
        "path": LOCATION.file,
        "line": LOCATION.line,
        **values,
    }
    assert str(error.value).startswith("folder/file.jsonl:7: ")
    assert "\n" not in str(error.value)


def test_empty_training_passage_is_refused() -> None:
    with pytest.raises(DataError) as error:
        parse_pair(changed(passage_text=" ", passage_image_path=None), LOCATION)
    assert (error.value.code, error.value.line) == ("empty-passage", 7)


def test_deferred_location_error_has_no_line() -> None:
    with pytest.raises(DataError) as error:
        parse_query(changed(question=5), DeferredLocation(LOCATION))
    assert (error.value.key, error.value.values.keys() & {"path", "line"}) == ("question", set())


def test_error_at_byte_location_has_line(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("{}\n\n{}\n")
    with pytest.raises(DataError) as error:
        parse_query("{", ByteLocation(file, 4))
    assert (error.value.path, error.value.line) == (file, 3)
    assert str(error.value).startswith(f"{file}:3: ")


def test_image_stored_in_row() -> None:
    encoded = base64.b64encode(b"picture").decode()
    for value in (encoded, {"bytes": b"picture", "path": "x.png"}, b"picture"):
        fields = {**GOOD, "image_path": None, "image": value, "passage_image": value}
        pair = parse_pair(fields, LOCATION)
        assert (pair.query.image_path, pair.query.image_bytes, pair.query.image) == (None, b"picture", b"picture")
        assert pair.passage.image == b"picture"
        assert parse_passage({**fields, "passage_id": 1}, LOCATION).image == b"picture"
    both = parse_query({**GOOD, "image": b"picture"}, LOCATION)
    assert (both.image_path, both.image_bytes, both.image) == ("a/b.png", None, "a/b.png")
    named = parse_query({**GOOD, "image_path": None, "image": {"bytes": None, "path": "c.png"}}, LOCATION)
    assert named.image == "c.png"
    only = parse_query({"data_id": 1, "passage_id": 2, "image": b"picture"}, LOCATION)
    assert (only.text, only.image) == (None, b"picture")
    assert "picture" not in repr(only)


@pytest.mark.parametrize(
    ("path", "read"), [(" a.png ", " a.png "), ("\u3000a.png", "\u3000a.png"), ("  ", None), ("", None)]
)
def test_image_paths_are_not_stripped(path: str, read: str | None) -> None:
    assert parse_query({**GOOD, "image_path": path}, LOCATION).image == read
    in_row = {"bytes": None, "path": path}
    assert parse_query({**GOOD, "image_path": None, "image": in_row}, LOCATION).image == read


@pytest.mark.parametrize(
    ("value", "code", "kind"),
    [
        ("no base64!", "field-type", "wrong_type"),
        (5, "field-type", "wrong_type"),
        ({"bytes": None, "path": "../x.png"}, "path-outside", "path_outside"),
        ({"bytes": None, "path": 5}, "field-type", "wrong_type"),
        ({"bytes": [1]}, "field-type", "wrong_type"),
    ],
)
def test_invalid_image_in_row_is_refused(value: object, code: str, kind: str) -> None:
    with pytest.raises(DataError) as error:
        parse_query({**GOOD, "image_path": None, "image": value}, LOCATION)
    assert (error.value.code, error.value.kind, error.value.key) == (code, kind, "image")


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b'{"data_id": "\xff"}', "bad_encoding"),
        (rb'{"data_id": "a", "question": "\ud800", "passage_id": 1}', "bad_encoding"),
        (rb'{"data_id": "a", "question": "x", "passage_id": "\udc00"}', "bad_encoding"),
        ("{", "bad_json"),
        ("[1]", "wrong_type"),
        (without("data_id"), "missing_field"),
        (changed(question=5), "wrong_type"),
        (changed(instruction=None, question=None, image_path=None), "empty_row"),
    ],
)
def test_row_error_keeps_kind_when_pickled(line: bytes | str, kind: str) -> None:
    with pytest.raises(DataError) as error:
        parse_query(line, LOCATION)
    assert error.value.kind == kind
    assert "\n" not in str(error.value)
    str(error.value).encode()
    again = pickle.loads(pickle.dumps(error.value))
    assert (type(again), str(again), again.kind) == (DataError, str(error.value), kind)


@pytest.mark.parametrize("row", [{"a\nb": 1, **{"x" * 50 + str(i): 1 for i in range(99)}}, {"y\n" * 99: math.inf}])
def test_long_field_names_are_shortened_in_messages(row: dict) -> None:
    with pytest.raises(DataError) as error:
        parse_query(json.dumps(row), LOCATION)
    assert error.value.code in ("missing-field", "infinite-number")
    assert len(str(error.value)) < 320
    assert "\n" not in str(error.value)


def test_with_instruction_replaces_instruction() -> None:
    query = parse_query(changed(), LOCATION)
    assert query.with_instruction("Which?").text == "Which? What is this?"
    assert query.text == "Find it: What is this?"
    assert parse_query(changed(question=None), LOCATION).with_instruction("Which?").text == "Which?"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(sorted(GOOD)), json_values))
def test_any_json_object_is_query_or_error(fields: dict) -> None:
    try:
        query = parse_query(json.dumps({**GOOD, **fields}), LOCATION)
    except DataError as error:
        assert str(error).startswith("folder/file.jsonl:7: ")
        assert "\n" not in str(error)
    else:
        assert query.passage_ids
        assert all(isinstance(x, str) for x in (*query.passage_ids, *query.answers, query.data_id))


@given(st.text(max_size=40))
def test_any_text_is_query_or_error(line: str) -> None:
    with pytest.raises(DataError) as error:
        parse_query(line, LOCATION)
    assert (error.value.path, error.value.line) == (LOCATION.file, 7)
    assert str(error.value).startswith("folder/file.jsonl:7: ")


def test_parse_negatives() -> None:
    row = {
        "data_id": "q", "question": "What?", "passage_id": "p", "passage_text": "Yes.",
        "negative_passages": [{"passage_id": 7, "passage_text": "No."}, {"passage_id": "n", "passage_image_path": "a.png"}],
    }  # fmt: skip
    negatives = parse_pair(json.dumps(row), LOCATION).negatives
    assert [(n.passage_id, n.text, n.image_path) for n in negatives] == [("7", "No.", None), ("n", None, "a.png")]
    assert parse_pair(json.dumps({**row, "negative_passages": None}), LOCATION).negatives == ()


@pytest.mark.parametrize(
    ("value", "code", "key"),
    [
        ("x", "field-type", "negative_passages"),
        (["x"], "field-type", "negative_passages[0]"),
        ([None, "x"], "field-type", "negative_passages[1]"),
        ([{"passage_id": "a", "passage_text": "t"}, {"passage_id": "b"}], "empty-negative", "negative_passages[1]"),
        ([{"passage_text": "t"}], "missing-field", "passage_id"),
        ([{"passage_id": "a", "passage_image_path": "../x.png"}], "path-outside", "passage_image_path"),
    ],
)
def test_invalid_negative_is_refused(value: object, code: str, key: str) -> None:
    row = {"data_id": "q", "question": "What?", "passage_id": "p", "passage_text": "Yes.", "negative_passages": value}
    with pytest.raises(DataError) as error:
        parse_pair(json.dumps(row), LOCATION)
    assert (error.value.code, error.value.key) == (code, key)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"w": 2, "t": 1, "negative_passages": None}, (2.0, [1.0])),
        (
            {"w": [1, None, True], "t": None, "negative_passages": [{"t": 0.5}, None, {"t": -1}]},
            ([1.0, None, 1.0], [None, 0.5, -1.0]),
        ),
        ({"w": 1, "t": [3, 2, 9, 1], "negative_passages": [{}, None, {}]}, (1.0, [3.0, 2.0, 1.0])),
    ],
)
def test_extra_columns(values: dict, expected: tuple) -> None:
    listed = values["negative_passages"]
    extend = {"passage_id": "n", "passage_text": "x"}
    negatives = listed and [None if item is None else extend | item for item in listed]
    content = {**json.loads(changed()), **values, "negative_passages": negatives}
    pair = parse_pair(json.dumps(content), LOCATION, ExtraColumns(("w",), ("t",)))

    def without_nan(value):
        if isinstance(value, tuple):
            return [without_nan(item) for item in value]
        return None if value != value else value

    assert (without_nan(pair.columns["w"]), without_nan(pair.passage_columns["t"])) == expected
    assert len(pair.passage_columns["t"]) == 1 + len(pair.negatives)


@pytest.mark.parametrize(
    ("values", "code", "key"),
    [
        ({"t": 1}, "missing-field", "w"),
        ({"w": "1", "t": 1}, "field-type", "w"),
        ({"w": [1, {}], "t": 1}, "field-type", "w"),
        ({"w": 1, "t": [1, 2, 3]}, "passage-column-length", "t"),
        ({"w": 1, "t": 1}, "missing-field", "t"),  # of the negative
        ({"w": 1, "t": 1, "of_negative": [1]}, "field-type", "negative_passages[0].t"),
        ({"w": float("inf"), "t": 1}, "infinite-number", "w"),
    ],
)
def test_invalid_extra_columns_are_refused(values: dict, code: str, key: str) -> None:
    values = dict(values)
    own = {"t": values.pop("of_negative")} if "of_negative" in values else {}
    negative = {"passage_id": "n", "passage_text": "x", **own}
    content = {**json.loads(changed()), **values, "negative_passages": [negative]}
    with pytest.raises(DataError) as error:
        parse_pair(json.dumps(content), LOCATION, ExtraColumns(("w",), ("t",)))
    assert (error.value.code, error.value.key, error.value.line) == (code, key, LOCATION.line)

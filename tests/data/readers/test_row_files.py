"""Row files of all formats: rows, spans, source locations and errors."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ret_lightning.data.readers import row_files
from ret_lightning.data.readers.indexed_rows import IndexedRows
from ret_lightning.data.readers.row_files import FileSpan, RowFiles
from ret_lightning.data.readers.source_location import Location
from ret_lightning.errors import DataError
from tests.support.row_files import ROWS, parsed, write


def read_spans(files: RowFiles) -> list[tuple[dict, Location]]:
    rows = [row for span in files.spans() for row in files.read(span)]
    assert len({(row.file, row.position) for row in rows}) == len(rows)
    return [(parsed(row.content), files.location(row)) for row in rows]


@pytest.mark.parametrize("suffix", row_files.SUFFIXES)
@pytest.mark.parametrize("count", [1, 3])
def test_all_formats_return_rows_with_locations(tmp_path: Path, suffix: str, count: int) -> None:
    parts = [ROWS[part::count] for part in range(count)]
    paths = [write(tmp_path / f"part-{i}{suffix}", rows) for i, rows in enumerate(parts)]
    files = RowFiles(paths)
    expected = [(row, path, line) for path, rows in zip(paths, parts, strict=True) for line, row in enumerate(rows, 1)]
    for read in (
        [(parsed(content), location) for content, location in files],
        read_spans(files),
        [(parsed(content), location) for content, location in IndexedRows(files)],
    ):
        assert [(row, location.file, location.line) for row, location in read] == expected


@pytest.mark.parametrize("suffix", row_files.SUFFIXES)
def test_rows_at_positions_equal_sequential_rows(tmp_path: Path, suffix: str) -> None:
    files = RowFiles([write(tmp_path / f"part-{i}{suffix}", ROWS[i::2]) for i in range(2)])
    all_rows = [row for span in files.spans() for row in files.read(span)]
    wanted = [0, 1, 69, 70, 149, 150, 211, 299]
    for file in range(2):
        expected = [all_rows[i] for i in wanted if all_rows[i].file == file]
        assert list(files.at(file, [row.position for row in expected])) == expected
    assert list(files.at(0, [])) == []


def test_first_row_at_position_has_no_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('\ufeff{"a": 1}\n', encoding="utf-8")
    assert [row.content for row in RowFiles([tmp_path / "a.jsonl"]).at(0, [0])] == [b'{"a": 1}']


lines = st.lists(
    st.sampled_from(
        ["", " ", "{}", '{"a": "é\u2028"}', '{"b": "' + "x" * 50 + '"}', '{"c": "\U0001f600\x85"}', "broken \t"]
    ),
    max_size=30,
)


@given(
    lines=lines,
    newline=st.sampled_from(["\n", "\r\n"]),
    ends=st.booleans(),
    bom=st.booleans(),
    size=st.integers(1, 70),
)
def test_spans_of_any_size_contain_every_line_once(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], newline: str, ends: bool, bom: bool, size: int
) -> None:
    content = ("\ufeff" if bom else "") + newline.join(lines) + (newline if ends else "")
    if not content:
        return
    path = tmp_path_factory.mktemp("spans") / "a.jsonl"
    path.write_bytes(content.encode())
    files = RowFiles([path])
    expected = [(line.strip(), number) for number, line in enumerate(lines, start=1) if line.strip()]
    cuts = [FileSpan(0, start, start + size) for start in range(0, path.stat().st_size, size)]
    rows = [row for cut in cuts for row in files.read(cut)]
    assert [(row.content.decode(), files.location(row).line) for row in rows] == expected
    assert [(content.decode(), location.line) for content, location in files] == expected


def test_large_files_have_many_spans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_files, "MIN_SPAN_BYTES", 100)
    paths = [write(tmp_path / f"{i}.jsonl") for i in range(2)]
    files = RowFiles(paths)
    assert 256 <= len(files.spans()) <= 258
    assert [row for row, _ in read_spans(files)] == ROWS + ROWS


def test_named_files_and_patterns(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.jsonl.gz", "d.parquet"):
        write(tmp_path / name)

    def named(*names: str) -> list[str]:
        return [
            path.name
            for path in RowFiles.named(tmp_path, names[0] if len(names) == 1 else names, "data.train_file").paths
        ]

    assert named("*.jsonl") == ["a.jsonl", "b.jsonl"]
    assert named("c.jsonl.gz", "[ab].jsonl") == ["c.jsonl.gz", "a.jsonl", "b.jsonl"]
    for names, code, values in (
        (["x*.jsonl"], "row-pattern-without-match", {"found": "x*.jsonl", "path": str(tmp_path)}),
        (["a.jsonl", "*.jsonl"], "row-file-repeated", {"path": str(tmp_path / "a.jsonl")}),
        (["*.jsonl", "*.parquet"], "row-files-mixed", {"path": str(tmp_path / "d.parquet")}),
        (["no.jsonl"], "row-file-missing", {"path": str(tmp_path / "no.jsonl")}),
        ([], "row-files-none", {"key": "data.train_file"}),
    ):
        with pytest.raises(DataError) as error:
            RowFiles.named(tmp_path, names, "data.train_file")
        assert error.value.code == code
        assert {key: error.value.values[key] for key in values} == values
        if code == "row-pattern-without-match":
            assert "a.jsonl, b.jsonl, c.jsonl.gz" in error.value.message


@pytest.mark.parametrize(
    ("name", "content", "code", "values"),
    [
        ("a.jsonl", b"", "row-file-zero-bytes", {}),
        ("a.jsonl.gz", b"", "row-file-zero-bytes", {}),
        ("a.json", b"{}", "row-file-suffix-unknown", {"allowed": row_files.SUFFIXES}),
        ("a.jsonl", gzip.compress(b"{}", mtime=0), "row-file-misnamed", {"found": "gzip", "expected": "plain text"}),
        ("a.jsonl.gz", b"{}\n", "row-file-misnamed", {"found": "plain text", "expected": "gzip"}),
        ("a.jsonl.zst", gzip.compress(b"{}", mtime=0), "row-file-misnamed", {"found": "gzip", "expected": "zstd"}),
        ("a.parquet", b'{"a": 1}\n', "row-file-misnamed", {"found": "plain text", "expected": "parquet"}),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0), "row-file-without-lines", {}),
        ("a.jsonl.gz", gzip.compress(b"{}\n" * 9, mtime=0)[:-9], "row-file-not-decompressed", {}),
        ("a.jsonl.gz", b"\x1f\x8b" + b"nonsense", "row-file-not-decompressed", {"line": 0}),
        ("a.parquet", b"PAR1 and nothing", "parquet-not-read", {}),
    ],
)  # fmt: skip
def test_invalid_row_files_are_refused(tmp_path: Path, name: str, content: bytes, code: str, values: dict) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        IndexedRows(RowFiles([tmp_path / name]))
    assert "\n" not in str(error.value)
    assert error.value.code == code
    assert error.value.path == str(tmp_path / name)
    assert {key: error.value.values[key] for key in values} == values


def test_file_of_blank_lines_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b" \n\n")
    with pytest.raises(DataError) as error:
        IndexedRows(RowFiles([tmp_path / "a.jsonl"]))
    assert (error.value.code, error.value.path) == ("row-file-blank", tmp_path / "a.jsonl")


def test_parquet_file_without_rows_is_refused(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"data_id": pyarrow.array([], pyarrow.string())}), tmp_path / "a.parquet")
    with pytest.raises(DataError) as error:
        RowFiles([tmp_path / "a.parquet"]).spans()
    assert error.value.code == "parquet-without-rows"


def test_parquet_column_name_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"naïve": [1]}), path)
    path.write_bytes(path.read_bytes().replace("ï".encode(), b"\x80\x80"))
    with pytest.raises(DataError) as error:
        RowFiles([path]).spans()
    assert (error.value.code, error.value.path) == ("parquet-not-read", str(path))


def test_parquet_files_may_have_different_columns(tmp_path: Path) -> None:
    first = write(tmp_path / "a.parquet", [{"data_id": 1, "question": None}, {"data_id": 2, "question": None}])
    second = write(tmp_path / "b.parquet", [{"data_id": 3, "question": "what", "image": {"bytes": b"x", "path": None}}])
    rows = IndexedRows(RowFiles([first, second]))
    assert [content["question"] for content, _ in rows] == [None, None, "what"]
    assert [content["image"] for content, _ in rows] == [None, None, {"bytes": b"x", "path": None}]
    write(tmp_path / "c.parquet", [{"data_id": ["a"]}])
    with pytest.raises(DataError) as error:
        IndexedRows(RowFiles([first, tmp_path / "c.parquet"]))
    assert error.value.code == "row-columns-differ"
    assert error.value.path == str(tmp_path / "c.parquet")


def test_categorical_parquet_columns_are_decoded(tmp_path: Path) -> None:
    for name, values in (("a", ["x", "y", "x"]), ("b", ["z", None, "x"])):
        table = pyarrow.table({"data_id": [1, 2, 3], "subset": pyarrow.array(values).dictionary_encode()})
        pyarrow.parquet.write_table(table, tmp_path / f"{name}.parquet")
    files = RowFiles([tmp_path / "a.parquet", tmp_path / "b.parquet"])
    expected = ["x", "y", "x", "z", None, "x"]
    assert [content["subset"] for content, _ in IndexedRows(files)] == expected
    assert [content["subset"] for content, _ in files] == expected


def test_changed_file_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS[:3])
    assert len(IndexedRows(RowFiles([path]))) == 3
    write(path, ROWS[:5])
    assert len(IndexedRows(RowFiles([path]))) == 5

"""Files of rows: every kind gives the rows of the plain file, stretches cut nothing, and places are right."""

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
from ret_lightning.data.readers.row_files import RowFiles, Stretch
from ret_lightning.data.readers.source_location import BytePlace, Place
from ret_lightning.errors import DataError
from tests.support.row_files import ROWS, parsed, write


def by_stretches(files: RowFiles) -> list[tuple[dict, Place | BytePlace]]:
    rows = [row for stretch in files.stretches() for row in files.read(stretch)]
    assert len({(row.file, row.position) for row in rows}) == len(rows)
    return [(parsed(row.content), files.place(row)) for row in rows]


@pytest.mark.parametrize("suffix", row_files.SUFFIXES)
@pytest.mark.parametrize("count", [1, 3])
def test_every_kind_gives_the_rows_in_order_with_their_places(tmp_path: Path, suffix: str, count: int) -> None:
    parts = [ROWS[part::count] for part in range(count)]
    paths = [write(tmp_path / f"part-{i}{suffix}", rows) for i, rows in enumerate(parts)]
    files = RowFiles(paths)
    expected = [(row, path, line) for path, rows in zip(paths, parts, strict=True) for line, row in enumerate(rows, 1)]
    for read in (
        [(parsed(content), place) for content, place in files],
        by_stretches(files),
        [(parsed(content), place) for content, place in IndexedRows(files)],
    ):
        assert [(row, place.file, place.line) for row, place in read] == expected


@pytest.mark.parametrize("suffix", row_files.SUFFIXES)
def test_single_rows_are_those_of_a_whole_reading(tmp_path: Path, suffix: str) -> None:
    files = RowFiles([write(tmp_path / f"part-{i}{suffix}", ROWS[i::2]) for i in range(2)])
    everything = [row for stretch in files.stretches() for row in files.read(stretch)]
    wanted = [0, 1, 69, 70, 149, 150, 211, 299]
    for file in range(2):
        expected = [everything[i] for i in wanted if everything[i].file == file]
        assert list(files.at(file, [row.position for row in expected])) == expected
    assert list(files.at(0, [])) == []


def test_a_single_first_row_has_no_byte_order_mark(tmp_path: Path) -> None:
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
def test_stretches_of_any_size_give_every_line_once(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], newline: str, ends: bool, bom: bool, size: int
) -> None:
    content = ("\ufeff" if bom else "") + newline.join(lines) + (newline if ends else "")
    if not content:
        return
    path = tmp_path_factory.mktemp("stretches") / "a.jsonl"
    path.write_bytes(content.encode())
    files = RowFiles([path])
    expected = [(line.strip(), number) for number, line in enumerate(lines, start=1) if line.strip()]
    cuts = [Stretch(0, start, start + size) for start in range(0, path.stat().st_size, size)]
    rows = [row for cut in cuts for row in files.read(cut)]
    assert [(row.content.decode(), files.place(row).line) for row in rows] == expected
    assert [(content.decode(), place.line) for content, place in files] == expected


def test_stretches_of_large_files_are_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_files, "SMALLEST_STRETCH", 100)
    paths = [write(tmp_path / f"{i}.jsonl") for i in range(2)]
    files = RowFiles(paths)
    assert 256 <= len(files.stretches()) <= 258
    assert [row for row, _ in by_stretches(files)] == ROWS + ROWS


def test_names_and_patterns(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.jsonl.gz", "d.parquet"):
        write(tmp_path / name)

    def named(*names: str) -> list[str]:
        return [
            path.name
            for path in RowFiles.named(tmp_path, names[0] if len(names) == 1 else names, "data.train_file").paths
        ]

    assert named("*.jsonl") == ["a.jsonl", "b.jsonl"]
    assert named("c.jsonl.gz", "[ab].jsonl") == ["c.jsonl.gz", "a.jsonl", "b.jsonl"]
    for names, code, found in (
        (["x*.jsonl"], "row-pattern-without-match", "; there are: a.jsonl, b.jsonl, c"),
        (["a.jsonl", "*.jsonl"], "row-file-repeated", "a.jsonl twice"),
        (["*.jsonl", "*.parquet"], "row-files-mixed", "d.parquet"),
        (["no.jsonl"], "row-file-missing", "no.jsonl"),
        ([], "row-files-none", "data.train_file"),
    ):
        with pytest.raises(DataError) as error:
            RowFiles.named(tmp_path, names, "data.train_file")
        assert error.value.code == code
        assert found in error.value.message


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
def test_files_that_are_not_what_they_should_be(
    tmp_path: Path, name: str, content: bytes, code: str, values: dict
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        IndexedRows(RowFiles([tmp_path / name]))
    assert "\n" not in str(error.value)
    assert error.value.code == code
    assert error.value.path == str(tmp_path / name)
    assert {key: error.value.values[key] for key in values} == values


def test_blank_lines_are_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b" \n\n")
    with pytest.raises(DataError, match=r"a\.jsonl: the file has no rows"):
        IndexedRows(RowFiles([tmp_path / "a.jsonl"]))


def test_a_parquet_file_without_rows(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"data_id": pyarrow.array([], pyarrow.string())}), tmp_path / "a.parquet")
    with pytest.raises(DataError) as error:
        RowFiles([tmp_path / "a.parquet"]).stretches()
    assert error.value.code == "parquet-without-rows"


def test_parquet_files_need_not_have_the_same_columns(tmp_path: Path) -> None:
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


def test_categorical_columns_of_parquet_are_texts(tmp_path: Path) -> None:
    for name, values in (("a", ["x", "y", "x"]), ("b", ["z", None, "x"])):
        table = pyarrow.table({"data_id": [1, 2, 3], "subset": pyarrow.array(values).dictionary_encode()})
        pyarrow.parquet.write_table(table, tmp_path / f"{name}.parquet")
    files = RowFiles([tmp_path / "a.parquet", tmp_path / "b.parquet"])
    expected = ["x", "y", "x", "z", None, "x"]
    assert [content["subset"] for content, _ in IndexedRows(files)] == expected
    assert [content["subset"] for content, _ in files] == expected


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS[:3])
    assert len(IndexedRows(RowFiles([path]))) == 3
    write(path, ROWS[:5])
    assert len(IndexedRows(RowFiles([path]))) == 5

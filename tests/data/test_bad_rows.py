"""Random invalid lines and files: each row is parsed, or skipped and counted, or raises a DataError with a kind."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ret_lightning import M2KRDataModule
from ret_lightning.data.bad_rows import Tally, parse_rows
from ret_lightning.data.checks.corpus_part import plan_scans
from ret_lightning.data.checks.row_scan import RowScan
from ret_lightning.data.images.sources import image_source
from ret_lightning.data.layouts.subset_names import SubsetNames
from ret_lightning.data.readers.indexed_rows import IndexedRows
from ret_lightning.data.readers.row_files import RowFiles
from ret_lightning.data.readers.source_location import SourceLocation
from ret_lightning.data.rows import M2KR_ROWS, parse_pair, parse_passage, parse_query
from ret_lightning.errors import DataError
from ret_lightning.inputs import ClipTokenizer, ImageTransform
from tests.support.m2kr_folder import passage, query, write_folder

pytestmark = pytest.mark.timeout(120)

FEW = settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
MANY = settings(max_examples=400)

PAIR = query("okvqa", 1) | passage("okvqa", 1)
FIELDS = (*PAIR, "image", "passage_image", "subset", "negative_passages")
NUMBERS = st.integers(-(10**400), 10**400) | st.floats() | st.just(1e308 * 10)
TEXTS = st.text() | st.sampled_from(
    ["", " ", "\ud800", "a\0b", "../x", "/etc/passwd", "\ufeff", "sub/1.png", "sub", "NaN"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["bytes", "path", "wikidata", "passage_id", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def changed_rows(draw: st.DrawFn) -> bytes:
    """A valid row with some fields changed or removed."""
    row = dict(PAIR)
    for name in draw(st.lists(st.sampled_from(FIELDS), max_size=3)):
        if draw(st.booleans()):
            row[name] = draw(VALUES)
        else:
            row.pop(name, None)
    return json.dumps(row).encode()


@st.composite
def torn_rows(draw: st.DrawFn) -> bytes:
    """A valid row with bytes removed, changed or inserted."""
    line = bytearray(json.dumps(PAIR, ensure_ascii=False).encode())
    start = draw(st.integers(0, len(line)))
    stop = draw(st.integers(start, len(line)))
    line[start:stop] = draw(st.binary(max_size=8))
    return bytes(line)


DEEP = st.sampled_from(
    [b"[" * 100_000, b'{"a":' * 100_000, b'{"data_id":' + b"9" * 10_000 + b"}", b"\xef\xbb\xbf{}", b"\0" * 50]
)
LINES = (st.binary(max_size=60) | changed_rows() | torn_rows() | DEEP | st.just(json.dumps(PAIR).encode())).map(
    lambda line: line.replace(b"\n", b" ")
)
PARSERS = (parse_query, parse_passage, parse_pair)


def count_rows(lines: list[bytes]) -> int:
    """Return the number of lines that are not blank; a byte order mark may begin the file."""
    return sum(bool(line.removeprefix(b"\xef\xbb\xbf" if i == 0 else b"").strip()) for i, line in enumerate(lines))


@MANY
@given(line=LINES, parse=st.sampled_from(PARSERS))
def test_any_line_is_row_or_error_with_kind(line: bytes, parse: Callable) -> None:
    location = SourceLocation(Path("rows.jsonl"), 7)
    M2KR_ROWS.parse_subset(line)  # never raises
    try:
        parse(line, location)
    except DataError as error:
        assert str(error).startswith("rows.jsonl:7: ")
        assert error.kind != "other"
        assert len(str(error).splitlines()) == 1
        str(error).encode("utf-8")  # can be printed


@FEW
@given(lines=st.lists(LINES, max_size=12), kind=st.sampled_from(["", ".gz"]))
def test_valid_and_bad_rows_add_up(lines: list[bytes], kind: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"rows.jsonl{kind}"
        content = b"\n".join(lines)
        file.write_bytes(gzip.compress(content) if kind else content)
        wanted = count_rows(lines)
        try:
            files = RowFiles([file])
            direct = list(files)
            from_spans = [row.content for span in files.spans() for row in files.read(span)]
        except DataError as error:
            assert not content or wanted == 0 or error.code == "row-file-misnamed"
            return
        assert [row for row, _ in direct] == from_spans
        assert len(direct) == wanted
        for parse in PARSERS:
            tally = Tally()
            good = list(parse_rows(direct, parse, tally))
            assert len(good) + tally.bad == tally.rows == wanted
        results = [scan() for scan, _ in plan_scans(files, "training", SubsetNames(["okvqa"]), None)]
        assert sum(result.rows.rows for result in results) == wanted
        assert sum(result.rows.bad for result in results) == tally.bad
        if wanted:
            indexed = IndexedRows(files)
            assert [indexed[i][0] for i in range(len(indexed))] == from_spans


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("corpus") / "m2kr", subsets=["okvqa"])


@FEW
@given(lines=st.lists(LINES, min_size=1, max_size=10), reading=st.sampled_from(["indexed", "streaming"]))
def test_loader_loses_no_row(corpus: Path, lines: list[bytes], reading: str) -> None:
    file = corpus / "jsonl/m2kr/train/m2kr_up_train.jsonl"
    file.write_bytes(b"\n".join([json.dumps(PAIR).encode(), *lines]))  # at least one valid row
    options = {"batch_size": 4, "reading": reading, "shuffle_buffer": 3}
    data = M2KRDataModule(corpus, ClipTokenizer(), ImageTransform(16), on_bad_row="skip", **options)
    data.prepare_data()
    data.setup("fit")
    batches = list(data.train_dataloader())
    rows = 1 + count_rows([b"x", *lines]) - 1
    bad = [row for batch in batches for row in batch.bad_rows]
    plan = data.validation_plan()
    removed = len(plan.holdout.removed)
    assert plan.sources == {"okvqa": "holdout" if removed else "test"}
    assert sum(len(batch) for batch in batches) + len(bad) == rows - removed
    for row in bad:
        assert row.kind != "other"
        assert row.message.startswith(f"{file}:")
    strict = M2KRDataModule(corpus, ClipTokenizer(), ImageTransform(16), **options)
    strict.setup("fit")
    if bad:
        with pytest.raises(DataError):
            list(strict.train_dataloader())
    else:
        assert sum(len(batch) for batch in strict.train_dataloader()) == rows - removed


@st.composite
def damage(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """A function that truncates a file or changes some of its bytes."""
    share, cut, patch = draw(st.floats(0, 1)), draw(st.booleans()), draw(st.binary(min_size=1, max_size=4))

    def damaged(content: bytes) -> bytes:
        at = int(share * len(content))
        return content[:at] if cut else content[:at] + patch + content[at + len(patch) :]

    return damaged


@settings(max_examples=120)
@given(spoil=damage(), kind=st.sampled_from([".jsonl.gz", ".jsonl.zst", ".parquet"]))
def test_damaged_row_file_is_reported(spoil: Callable[[bytes], bytes], kind: str) -> None:
    """A damaged file raises an error, or all its rows are counted: a part of a file is never read as the whole."""
    import pyarrow
    import pyarrow.parquet

    rows = [PAIR | {"data_id": f"q{i}"} for i in range(300)]
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    out = pyarrow.BufferOutputStream()
    if kind == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"data_id": r["data_id"], "x": 1} for r in rows]), out)
    else:
        with pyarrow.CompressedOutputStream(out, {".jsonl.gz": "gzip", ".jsonl.zst": "zstd"}[kind]) as stream:
            stream.write(text)
    whole = out.getvalue().to_pybytes()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"rows{kind}"
        file.write_bytes(content := spoil(whole))
        try:
            files = RowFiles([file])
            scans: list[RowScan] = [scan for scan, _ in plan_scans(files, "training", SubsetNames(["okvqa"]), None)]
        except DataError:
            return
        results = [scan() for scan in scans]
        try:
            count = len(list(files))
        except DataError:
            assert any(result.broken for result in results)
            return
        assert not any(result.broken for result in results)
        assert sum(result.rows.rows for result in results) == count
        if len(content) < len(whole):
            assert count == len(rows)  # only bytes after the rows were removed


@settings(max_examples=120)
@given(spoil=damage(), kind=st.sampled_from([".tar", ".zip"]))
def test_damaged_archive_is_reported(spoil: Callable[[bytes], bytes], kind: str) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        out = io.BytesIO()
        members = {f"a/{i}.png": bytes([i]) * 700 for i in range(4)}
        if kind == ".tar":
            with tarfile.open(fileobj=out, mode="w") as archive:
                for name, content in members.items():
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        else:
            with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, content in members.items():
                    archive.writestr(name, content)
        file = folder / f"images{kind}"
        file.write_bytes(spoil(out.getvalue()))
        try:
            source = image_source(file.name, folder)
        except DataError:
            return
        for name, content in members.items():
            try:
                read = source.read(name)
            except DataError as error:
                assert error.kind in ("missing_image", "unreadable_image")
            else:
                # A tar has no checksums of its members; a broken image is found when it is decoded.
                assert kind == ".tar" or read == content
    finally:
        shutil.rmtree(folder)


def test_parquet_text_not_utf8_is_bad_row(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = {name: pyarrow.array([value] * 3) for name, value in PAIR.items() if name in ("data_id", "question")}
    rows["passage_id"] = pyarrow.array(["p"] * 3)
    rows["passage_text"] = pyarrow.array([b"good", b"b\xe4d", b"good"]).view(pyarrow.string())
    rows["answer"] = pyarrow.array([[b"good"], [b"good"], [b"b\xe4d"]]).cast(pyarrow.list_(pyarrow.binary()))
    rows["answer"] = pyarrow.ListArray.from_arrays([0, 1, 2, 3], rows["answer"].values.view(pyarrow.string()))
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "rows.parquet")
    files = RowFiles([tmp_path / "rows.parquet"])
    indexed = IndexedRows(files)
    for contents in (list(files), [indexed[i] for i in range(3)]):
        tally = Tally()
        assert len(list(parse_rows(contents, parse_pair, tally))) == 1
        messages = [row.message.split(": ", 1)[1] for row in tally.first["wrong_type"]]
        assert [message.split(" must be ")[0] for message in messages] == ["field passage_text", "field answer"]
        assert [message.split(", got ")[1] for message in messages] == [
            "bytes: \"b'b\\\\xe4d'\"",
            "bytes: \"b'text that is not UTF-8'\"",
        ]

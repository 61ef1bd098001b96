"""Row files: JSON Lines, plain or compressed, and parquet; read sequentially, in spans or by position.

Rows are not parsed here: a row is a line as it is stored, or a row of a parquet file as a dict.
"""

from __future__ import annotations

import glob
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ret_lightning.data.readers.fields import Content
from ret_lightning.data.readers.parquet_columns import read_column_types
from ret_lightning.data.readers.source_location import ByteLocation, Location, SourceLocation
from ret_lightning.errors import DataError
from ret_lightning.runtime.git_lfs import refuse_lfs_pointer

if TYPE_CHECKING:
    import pyarrow

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
_CODECS = {".gz": "gzip", ".zst": "zstd"}
_MAGIC = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd", ".parquet": b"PAR1"}

# Bytes of a span of a plain file: small enough to shuffle a corpus by spans, large enough for sequential disk reads.
MAX_SPAN_BYTES, MIN_SPAN_BYTES = 16 << 20, 64 << 10
MIN_SPANS = 256  # of a corpus, if the limits of the size allow it
_READ_AHEAD = 1 << 20
_PARQUET_ROWS = 256  # per decoded batch


class RawRow(NamedTuple):
    """A row as it is stored in a file.

    Attributes:
        content: the line, or the row of a parquet file as a dict.
        file: index of the file in `RowFiles.paths`.
        position: in a plain file the byte offset of the line, otherwise the 1-based number of the line or row. `file` and
            `position` identify the row.
    """

    content: Content
    file: int
    position: int


@dataclass(frozen=True)
class FileSpan:
    """A part of a file that is read sequentially: a byte range, a row group, or a whole compressed file.

    Attributes:
        file: index of the file in `RowFiles.paths`.
        start: first byte in a plain file, row group in a parquet file, 0 in a compressed file.
        stop: in a plain file the end of the byte range, otherwise 0. The span contains the lines that begin in
            [start, stop).
    """

    file: int
    start: int = 0
    stop: int = 0


class RowFiles:
    """One or more row files, in order.

    Args:
        paths: either JSON Lines files (`.jsonl`, `.jsonl.gz` and `.jsonl.zst`, in any mixture) or `.parquet` files.

    Raises:
        DataError: if a file is missing or empty, its content does not match its suffix, or parquet is mixed with JSON Lines.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self.is_parquet = suffix_of(self.paths[0]) == ".parquet"
        for path in self.paths:
            _check(path)
            if (suffix_of(path) == ".parquet") != self.is_parquet:
                raise DataError(
                    f"{path}: cannot mix parquet and JSON Lines files, as {self.paths[0].name} is of the other kind",
                    code="row-files-mixed",
                    path=str(path),
                    first=str(self.paths[0]),
                )

    @classmethod
    def named(cls, folder: Path, names: str | Sequence[str], setting: str) -> RowFiles:
        """Build the files of a setting from file names and patterns.

        Args:
            folder: folder that the names are relative to.
            names: file names, or patterns with `*`, `?` or `[`, whose matches are sorted by name.
            setting: key of the setting, for error messages.

        Raises:
            DataError: if a pattern has no match, a file is named twice, a file is missing or empty, its content does not match
                its suffix, or parquet is mixed with JSON Lines.
        """
        paths: list[Path] = []
        for name in [names] if isinstance(names, str) else names:
            if glob.has_magic(name) and not (folder / name).exists():
                found = sorted(folder / match for match in glob.glob(name, root_dir=folder, recursive=True))
                if not found:
                    raise DataError(
                        f"{setting}={name} matches no file in {folder}{_list_row_files(folder)}",
                        code="row-pattern-without-match",
                        key=setting,
                        found=name,
                        path=str(folder),
                    )
                paths += found
            else:
                paths.append(folder / name)
        if not paths:
            raise DataError(f"{setting} is empty; expected at least one file name", code="row-files-none", key=setting)
        twice = next((path for i, path in enumerate(paths) if path in paths[:i]), None)
        if twice is not None:
            text = f"{setting} lists {twice} twice; list each file once"
            raise DataError(text, code="row-file-repeated", key=setting, path=str(twice))
        return cls(paths)

    def __str__(self) -> str:
        return str(self.paths[0]) + (f" and {len(self.paths) - 1} more files" if len(self.paths) > 1 else "")

    def location(self, row: RawRow) -> Location:
        """Return the source location of a row."""
        path = self.paths[row.file]
        return ByteLocation(path, row.position) if suffix_of(path) == ".jsonl" else SourceLocation(path, row.position)

    def __getitem__(self, row: RawRow) -> tuple[Content, Location]:
        """Return the content and the source location of a row."""
        return row.content, self.location(row)

    def size(self) -> int:
        """Return the size of all files on disk, in bytes."""
        return sum(path.stat().st_size for path in self.paths)

    def fingerprint(self) -> tuple[tuple[str, int, int], ...]:
        """Return path, size in bytes and modification time in nanoseconds of each file, to detect changed files."""
        stats = ((path.resolve(), path.stat()) for path in self.paths)
        return tuple((str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats)

    def spans(self) -> list[FileSpan]:
        """Return all spans of the files, in order; together they contain every row once."""
        size = min(MAX_SPAN_BYTES, max(MIN_SPAN_BYTES, self.size() // MIN_SPANS))
        spans: list[FileSpan] = []
        for number, path in enumerate(self.paths):
            if self.is_parquet:
                with _open_parquet(path) as file:
                    spans += [FileSpan(number, group) for group in range(file.num_row_groups)]
            elif suffix_of(path) == ".jsonl":
                end = path.stat().st_size
                spans += [FileSpan(number, start, min(start + size, end)) for start in range(0, end, size)]
            else:
                spans.append(FileSpan(number))
        return spans

    def read(self, span: FileSpan) -> Iterator[RawRow]:
        """Read the rows of a span, without blank lines.

        Args:
            span: one of `spans()`.

        Raises:
            DataError: if the file cannot be decompressed, or cannot be read as parquet.
        """
        path = self.paths[span.file]
        if self.is_parquet:
            rows = self._parquet_rows(span)
        elif suffix_of(path) == ".jsonl":
            rows = _lines_between(path, span.start, span.stop)
        else:
            rows = _decompressed_lines(path)
        return (RawRow(content, span.file, position) for position, content in rows)

    def at(self, file: int, positions: Sequence[int]) -> Iterator[RawRow]:
        """Read some rows of a file by their positions.

        Plain files are read by seeking, parquet files by row group, and compressed files from the beginning.

        Args:
            file: index of the file in `paths`.
            positions: `RawRow.position` of the rows, in ascending order.

        Raises:
            DataError: if the file cannot be decompressed, or cannot be read as parquet.
        """
        if self.is_parquet:
            found = self._parquet_rows_at(file, positions)
        elif suffix_of(self.paths[file]) == ".jsonl":
            found = _lines_at(self.paths[file], positions)
        else:
            selected = set(positions)
            found = ((number, line) for number, line in _decompressed_lines(self.paths[file]) if number in selected)
        return (RawRow(content, file, position) for position, content in islice(found, len(positions)))

    def __iter__(self) -> Iterator[tuple[Content, SourceLocation]]:
        """Iterate over the rows of all files in order, with their source locations."""
        if self.is_parquet:
            for span in self.spans():
                for number, row in self._parquet_rows(span):
                    yield row, SourceLocation(self.paths[span.file], number)
            return
        for file, path in enumerate(self.paths):
            for number, line in self.numbered_lines(file):
                yield line, SourceLocation(path, number)

    def numbered_lines(self, file: int) -> Iterator[tuple[int, bytes]]:
        """Iterate over the non-blank lines of a JSON Lines file, `paths[file]`, with their 1-based line numbers."""
        path = self.paths[file]
        return _decompressed_lines(path) if path.suffix in _CODECS else _plain_lines(path)

    def parquet_batches(self, span: FileSpan) -> Iterator[tuple[int, pyarrow.RecordBatch]]:
        """Iterate over the batches of a parquet span, each with the 1-based number of its first row in the file."""
        with _open_parquet(self.paths[span.file]) as file:
            number = 1 + sum(file.metadata.row_group(before).num_rows for before in range(span.start))
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, row_groups=[span.start]):
                yield number, batch
                number += len(batch)

    def parquet_schema(self) -> pyarrow.Schema:
        """Return the common schema of all parquet files. A column without values in a file is compatible with every type.

        Raises:
            DataError: if the types of a column in two files are incompatible.
        """
        import pyarrow

        schema = pyarrow.schema([])
        for path in self.paths:
            with _open_parquet(path) as file:
                try:
                    schema = pyarrow.unify_schemas([schema, read_column_types(file)], promote_options="permissive")
                except pyarrow.ArrowException as error:
                    reason = " ".join(str(error).split())
                    raise DataError(
                        f"{path}: columns are incompatible with those of the files before it: {reason}",
                        code="row-columns-differ",
                        path=str(path),
                        reason=reason,
                    ) from None
        decoded = [  # a categorical column of pandas may have different categories in each file
            field.with_type(field.type.value_type) if pyarrow.types.is_dictionary(field.type) else field
            for field in schema
        ]
        return pyarrow.schema(decoded)

    def _parquet_rows(self, span: FileSpan) -> Iterator[tuple[int, dict[str, Any]]]:
        for first, batch in self.parquet_batches(span):
            yield from enumerate(_decode_batch(batch), start=first)

    def _parquet_rows_at(self, file: int, positions: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        with _open_parquet(self.paths[file]) as content:
            sizes = [content.metadata.row_group(group).num_rows for group in range(content.num_row_groups)]
        numbers = np.array(positions)
        for group in np.unique(np.searchsorted(np.cumsum(sizes), numbers)):  # positions begin at 1
            for first, batch in self.parquet_batches(FileSpan(file, int(group))):
                own = numbers[(numbers >= first) & (numbers < first + len(batch))]
                if len(own):
                    yield from zip(own.tolist(), _decode_batch(batch.take(own - first)), strict=True)


def _decode_batch(batch: pyarrow.RecordBatch) -> Iterable[dict[str, Any]]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        return map(decode_row, batch.to_struct_array())


def decode_row(row: pyarrow.StructScalar) -> dict[str, Any]:
    """Convert a parquet row to a dict; a string that is not valid UTF-8 stays bytes, which parsers reject."""
    try:
        return row.as_py()
    except UnicodeDecodeError:
        return {name: _decode_value(value) for name, value in row.items()}


def _decode_value(value: pyarrow.Scalar) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return value.as_buffer().to_pybytes() if hasattr(value, "as_buffer") else b"text that is not UTF-8"


def suffix_of(path: Path) -> str:
    """Return the suffix of a row file: `.jsonl`, `.jsonl.gz`, `.jsonl.zst` or `.parquet`; empty for other files."""
    return next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), "")


def _check(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"{path}: no such file", code="row-file-missing", path=str(path))
    refuse_lfs_pointer(path)
    suffix = suffix_of(path)
    if not suffix:
        raise DataError(
            f"{path}: expected a file name that ends in one of {', '.join(SUFFIXES)}",
            code="row-file-suffix-unknown",
            path=str(path),
            allowed=SUFFIXES,
        )
    with path.open("rb") as file:
        beginning = file.read(4)
    if not beginning:
        raise DataError(f"{path}: the file is empty, expected rows", code="row-file-zero-bytes", path=str(path))
    kind = next((kind for kind, magic in _MAGIC.items() if beginning.startswith(magic)), ".jsonl")
    if not suffix.endswith(kind):
        names = {".gz": "gzip", ".zst": "zstd", ".parquet": "parquet", ".jsonl": "plain text"}
        found, expected = names[kind], names[suffix if suffix in names else suffix[len(".jsonl") :]]
        raise DataError(
            f"{path}: expected {expected} because of the suffix {suffix}, got {found}; rename the file",
            code="row-file-misnamed",
            path=str(path),
            found=found,
            expected=expected,
        )


def _list_row_files(folder: Path) -> str:
    """Return the end of an error message: the row files of a folder."""
    if not folder.is_dir():
        return "; the folder does not exist"
    names = sorted(path.name for path in folder.iterdir() if suffix_of(path))
    return (
        f"; there are: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
        if names
        else "; there are no row files"
    )


def _lines_between(path: Path, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """Iterate over the lines that begin at a byte offset in [start, stop), with their offsets."""
    with path.open("rb", buffering=_READ_AHEAD) as file:
        if start:
            file.seek(start - 1)
            start += len(file.readline()) - 1  # skips the end of a line of the previous span
        for line in file:
            if start >= stop:
                return
            content = _strip_line(line, first=start == 0)
            if content:
                yield start, content
            start += len(line)


def _lines_at(path: Path, positions: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    """Iterate over the lines that begin at some byte offsets, with their offsets."""
    with path.open("rb") as file:
        for position in positions:
            file.seek(position)
            yield position, _strip_line(file.readline(), first=position == 0)


def _plain_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb", buffering=_READ_AHEAD) as file:
        for number, line in enumerate(file, start=1):
            content = _strip_line(line, first=number == 1)
            if content:
                yield number, content


def _decompressed_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    import pyarrow

    number = 0
    try:
        stream = pyarrow.input_stream(str(path), compression=_CODECS[path.suffix])
        with io.BufferedReader(stream, _READ_AHEAD) as lines:
            for number, line in enumerate(lines, start=1):
                content = _strip_line(line, first=number == 1)
                if content:
                    yield number, content
    except OSError as error:
        raise DataError(
            f"{path}: cannot decompress the file after line {number}: {error}",
            code="row-file-not-decompressed",
            path=str(path),
            line=number,
            reason=str(error),
        ) from error
    if number == 0:
        raise DataError(f"{path}: compressed file has no lines", code="row-file-without-lines", path=str(path))


def _strip_line(line: bytes, first: bool) -> bytes:
    return (line.removeprefix(b"\xef\xbb\xbf") if first else line).strip()


@contextmanager
def _open_parquet(path: Path) -> Iterator[pyarrow.parquet.ParquetFile]:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if file.metadata.num_rows == 0:
                raise DataError(f"{path}: the file has no rows", code="parquet-without-rows", path=str(path))
            yield file
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        first = str(error).splitlines()[0]
        raise DataError(
            f"{path}: cannot read the file as parquet: {first}", code="parquet-not-read", path=str(path), reason=first
        ) from error

"""Files of rows: JSON Lines, plain or compressed, and parquet; one or many, read from front to back or in stretches.

Nothing is parsed here: a row is a line as it is stored, or a row of a parquet file as a dict.
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
from ret_lightning.data.readers.parquet_columns import column_types
from ret_lightning.data.readers.source_location import BytePlace, Place
from ret_lightning.errors import DataError
from ret_lightning.runtime.git_lfs import refuse_lfs_pointer

if TYPE_CHECKING:
    import pyarrow

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
_CODECS = {".gz": "gzip", ".zst": "zstd"}
_MAGIC = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd", ".parquet": b"PAR1"}

# A stretch of a plain file: short enough that many make up a corpus, long enough that a disk does not notice the jumps.
LARGEST_STRETCH, SMALLEST_STRETCH = 16 << 20, 64 << 10
STRETCHES = 256  # wanted at least, between those sizes
_READ_AHEAD = 1 << 20
_PARQUET_ROWS = 256  # decoded at a time


class RawRow(NamedTuple):
    """A row as it is stored in a file.

    Attributes:
        content: the line, or the row of a parquet file as a dict.
        file: number of the file among the `RowFiles`.
        position: the byte that the line begins at in a plain file; else the 1-based number of the line or row. Together
            with `file` it names the row for ever.
    """

    content: Content
    file: int
    position: int


@dataclass(frozen=True)
class Stretch:
    """A part of a file that is read from front to back.

    Attributes:
        file: number of the file among the `RowFiles`.
        start: of a plain file the first byte, of a parquet file the row group; 0 of a compressed file, which is one stretch.
        stop: of a plain file, the byte before which the stretch's last line begins; else 0.
    """

    file: int
    start: int = 0
    stop: int = 0


class RowFiles:
    """One or many files of rows, in order.

    Args:
        paths: all of one kind: JSON Lines (`.jsonl`, `.jsonl.gz`, `.jsonl.zst`, which may be mixed) or `.parquet`.

    Raises:
        DataError: if a file is missing, empty, not what its suffix says, or of another kind than the first.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self.is_parquet = suffix_of(self.paths[0]) == ".parquet"
        for path in self.paths:
            _check(path)
            if (suffix_of(path) == ".parquet") != self.is_parquet:
                raise DataError(
                    f"{path}: files of two kinds; {self.paths[0].name} is of another: take one of them",
                    code="row-files-mixed",
                    path=str(path),
                    first=str(self.paths[0]),
                )

    @classmethod
    def named(cls, folder: Path, names: str | Sequence[str], setting: str) -> RowFiles:
        """The files of a setting.

        Args:
            folder: what the names are relative to.
            names: file names or patterns with `*`, `?` or `[`; files that match one pattern come in the order of their names.
            setting: what the user calls it, for messages.

        Raises:
            DataError: if a pattern matches nothing, or one file is named twice; and as the constructor.
        """
        paths: list[Path] = []
        for name in [names] if isinstance(names, str) else names:
            if glob.has_magic(name) and not (folder / name).exists():
                found = sorted(folder / match for match in glob.glob(name, root_dir=folder, recursive=True))
                if not found:
                    raise DataError(
                        f"{setting}={name} matches no file in {folder}{_there_are(folder)}",
                        code="row-pattern-without-match",
                        key=setting,
                        found=name,
                        path=str(folder),
                    )
                paths += found
            else:
                paths.append(folder / name)
        if not paths:
            raise DataError(f"{setting} names no file", code="row-files-none", key=setting)
        twice = next((path for i, path in enumerate(paths) if path in paths[:i]), None)
        if twice is not None:
            raise DataError(f"{setting} names {twice} twice", code="row-file-repeated", key=setting, path=str(twice))
        return cls(paths)

    def __str__(self) -> str:
        return str(self.paths[0]) + (f" and {len(self.paths) - 1} more files" if len(self.paths) > 1 else "")

    def place(self, row: RawRow) -> Place | BytePlace:
        """The source location of a row."""
        path = self.paths[row.file]
        return BytePlace(path, row.position) if suffix_of(path) == ".jsonl" else Place(path, row.position)

    def __getitem__(self, row: RawRow) -> tuple[Content, Place | BytePlace]:
        """A row and its source location, as `IndexedRows` returns them for a row's number."""
        return row.content, self.place(row)

    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.paths)

    def fingerprint(self) -> tuple[tuple[str, int, int], ...]:
        """What changes when a file does: path, size and time of the last change, of each."""
        stats = ((path.resolve(), path.stat()) for path in self.paths)
        return tuple((str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats)

    def stretches(self) -> list[Stretch]:
        """All of them in order: read one after the other they yield every row once, in the order of the files."""
        size = min(LARGEST_STRETCH, max(SMALLEST_STRETCH, self.size() // STRETCHES))
        stretches: list[Stretch] = []
        for number, path in enumerate(self.paths):
            if self.is_parquet:
                with _parquet(path) as file:
                    stretches += [Stretch(number, group) for group in range(file.num_row_groups)]
            elif suffix_of(path) == ".jsonl":
                end = path.stat().st_size
                stretches += [Stretch(number, start, min(start + size, end)) for start in range(0, end, size)]
            else:
                stretches.append(Stretch(number))
        return stretches

    def read(self, stretch: Stretch) -> Iterator[RawRow]:
        """The rows of a stretch; blank lines are passed over.

        Raises:
            DataError: if the file cannot be decompressed or is no parquet file after all, with the last good line.
        """
        path = self.paths[stretch.file]
        if self.is_parquet:
            rows = self._parquet_rows(stretch)
        elif suffix_of(path) == ".jsonl":
            rows = _lines_between(path, stretch.start, stretch.stop)
        else:
            rows = _decompressed_lines(path)
        return (RawRow(content, stretch.file, position) for position, content in rows)

    def at(self, file: int, positions: Sequence[int]) -> Iterator[RawRow]:
        """Single rows of a file: plain lines are sought, of parquet only the row groups are read, of others everything.

        Args:
            file: number of the file.
            positions: of the rows, ascending; see `RawRow`.

        Raises:
            DataError: as `read`.
        """
        if self.is_parquet:
            found = self._parquet_rows_at(file, positions)
        elif suffix_of(self.paths[file]) == ".jsonl":
            found = _lines_at(self.paths[file], positions)
        else:
            wanted = set(positions)
            found = ((number, line) for number, line in _decompressed_lines(self.paths[file]) if number in wanted)
        return (RawRow(content, file, position) for position, content in islice(found, len(positions)))

    def __iter__(self) -> Iterator[tuple[Content, Place]]:
        """All rows in order, with their places."""
        if self.is_parquet:
            for stretch in self.stretches():
                for number, row in self._parquet_rows(stretch):
                    yield row, Place(self.paths[stretch.file], number)
            return
        for file, path in enumerate(self.paths):
            for number, line in self.numbered_lines(file):
                yield line, Place(path, number)

    def numbered_lines(self, file: int) -> Iterator[tuple[int, bytes]]:
        """The lines of a file that is not parquet, with their 1-based numbers; blank ones are passed over but counted."""
        path = self.paths[file]
        return _decompressed_lines(path) if path.suffix in _CODECS else _plain_lines(path)

    def parquet_batches(self, stretch: Stretch) -> Iterator[tuple[int, pyarrow.RecordBatch]]:
        """A row group in pieces, each with the 1-based number of its first row in the file."""
        with _parquet(self.paths[stretch.file]) as file:
            number = 1 + sum(file.metadata.row_group(before).num_rows for before in range(stretch.start))
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, row_groups=[stretch.start]):
                yield number, batch
                number += len(batch)

    def parquet_schema(self) -> pyarrow.Schema:
        """The columns of all parquet files together; a column that misses all values of a file fits any type.

        Raises:
            DataError: if a column is of types that do not go together.
        """
        import pyarrow

        whole = pyarrow.schema([])
        for path in self.paths:
            with _parquet(path) as file:
                try:
                    whole = pyarrow.unify_schemas([whole, column_types(file)], promote_options="permissive")
                except pyarrow.ArrowException as error:
                    reason = " ".join(str(error).split())
                    raise DataError(
                        f"{path}: its columns differ from those of the files before: {reason}",
                        code="row-columns-differ",
                        path=str(path),
                        reason=reason,
                    ) from None
        decoded = [  # a categorical column, as pandas writes it, may have other categories in each file
            field.with_type(field.type.value_type) if pyarrow.types.is_dictionary(field.type) else field
            for field in whole
        ]
        return pyarrow.schema(decoded)

    def _parquet_rows(self, stretch: Stretch) -> Iterator[tuple[int, dict[str, Any]]]:
        for first, batch in self.parquet_batches(stretch):
            yield from enumerate(_rows_of(batch), start=first)

    def _parquet_rows_at(self, file: int, positions: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        with _parquet(self.paths[file]) as content:
            sizes = [content.metadata.row_group(group).num_rows for group in range(content.num_row_groups)]
        wanted = np.array(positions)
        for group in np.unique(np.searchsorted(np.cumsum(sizes), wanted)):  # positions begin at 1
            for first, batch in self.parquet_batches(Stretch(file, int(group))):
                own = wanted[(wanted >= first) & (wanted < first + len(batch))]
                if len(own):
                    yield from zip(own.tolist(), _rows_of(batch.take(own - first)), strict=True)


def _rows_of(batch: pyarrow.RecordBatch) -> Iterable[dict[str, Any]]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        return map(parquet_row, batch.to_struct_array())


def parquet_row(row: pyarrow.StructScalar) -> dict[str, Any]:
    """A row as a dict; a string that is not UTF-8, which parquet does not rule out, stays bytes, for the parser to refuse."""
    try:
        return row.as_py()
    except UnicodeDecodeError:
        return {name: _value(value) for name, value in row.items()}


def _value(value: pyarrow.Scalar) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return value.as_buffer().to_pybytes() if hasattr(value, "as_buffer") else b"text that is not UTF-8"


def suffix_of(path: Path) -> str:
    """`.jsonl`, `.jsonl.gz`, `.jsonl.zst` or `.parquet`; empty for others."""
    return next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), "")


def _check(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"{path}: no such file", code="row-file-missing", path=str(path))
    refuse_lfs_pointer(path)
    suffix = suffix_of(path)
    if not suffix:
        raise DataError(
            f"{path}: a file of rows must end in one of {', '.join(SUFFIXES)}",
            code="row-file-suffix-unknown",
            path=str(path),
            allowed=SUFFIXES,
        )
    with path.open("rb") as file:
        beginning = file.read(4)
    if not beginning:
        raise DataError(f"{path}: the file is empty", code="row-file-zero-bytes", path=str(path))
    kind = next((kind for kind, magic in _MAGIC.items() if beginning.startswith(magic)), ".jsonl")
    if not suffix.endswith(kind):
        names = {".gz": "gzip", ".zst": "zstd", ".parquet": "parquet", ".jsonl": "plain text"}
        found, wanted = names[kind], names[suffix if suffix in names else suffix[len(".jsonl") :]]
        raise DataError(
            f"{path}: the file is {found}, but its name ends in {suffix}, which is for {wanted}; rename it",
            code="row-file-misnamed",
            path=str(path),
            found=found,
            expected=wanted,
        )


def _there_are(folder: Path) -> str:
    if not folder.is_dir():
        return ", which does not exist"
    names = sorted(path.name for path in folder.iterdir() if suffix_of(path))
    return (
        f"; there are: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
        if names
        else ", which has no file of rows"
    )


def _lines_between(path: Path, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """The lines that begin at a byte in [start, stop), with that byte."""
    with path.open("rb", buffering=_READ_AHEAD) as file:
        if start:
            file.seek(start - 1)
            start += len(file.readline()) - 1  # the end of a line that belongs to the stretch before
        for line in file:
            if start >= stop:
                return
            content = _content(line, first=start == 0)
            if content:
                yield start, content
            start += len(line)


def _lines_at(path: Path, positions: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    """The lines that begin at these bytes."""
    with path.open("rb") as file:
        for position in positions:
            file.seek(position)
            yield position, _content(file.readline(), first=position == 0)


def _plain_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb", buffering=_READ_AHEAD) as file:
        for number, line in enumerate(file, start=1):
            content = _content(line, first=number == 1)
            if content:
                yield number, content


def _decompressed_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    import pyarrow

    number = 0
    try:
        stream = pyarrow.input_stream(str(path), compression=_CODECS[path.suffix])
        with io.BufferedReader(stream, _READ_AHEAD) as lines:
            for number, line in enumerate(lines, start=1):
                content = _content(line, first=number == 1)
                if content:
                    yield number, content
    except OSError as error:
        raise DataError(
            f"{path}: cannot be decompressed after line {number}: {error}",
            code="row-file-not-decompressed",
            path=str(path),
            line=number,
            reason=str(error),
        ) from error
    if number == 0:
        raise DataError(
            f"{path}: there is nothing in the compressed file", code="row-file-without-lines", path=str(path)
        )


def _content(line: bytes, first: bool) -> bytes:
    return (line.removeprefix(b"\xef\xbb\xbf") if first else line).strip()


@contextmanager
def _parquet(path: Path) -> Iterator[pyarrow.parquet.ParquetFile]:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if file.metadata.num_rows == 0:
                raise DataError(f"{path}: the file has no rows", code="parquet-without-rows", path=str(path))
            yield file
    except (OSError, pyarrow.ArrowException) as error:
        first = str(error).splitlines()[0]
        raise DataError(
            f"{path}: cannot be read as parquet: {first}", code="parquet-not-read", path=str(path), reason=first
        ) from error

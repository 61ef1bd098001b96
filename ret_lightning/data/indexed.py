"""Rows by their number: files of rows, copied once through `datasets` into Arrow, which is mapped into memory.

Lines are kept as text and parsed one by one (rows.py): the columns of ReT-M2KR mix strings, numbers, lists and objects, which
Arrow's own JSON reader refuses, and a parsed table no longer knows the line that a mistake stands on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import datasets
import pyarrow as pa

from ret_lightning.data.fields import Content
from ret_lightning.data.places import Place
from ret_lightning.data.row_files import RowFiles, Stretch
from ret_lightning.errors import DataError

QUIET_BYTES = 100_000_000  # files below are copied in about a second
_TABLE_BYTES, _TABLE_ROWS = 16 << 20, 100_000
_ROWS_AT_ONCE = 1_000


class IndexedRows:
    """The rows of files, by number, in their order; blank lines do not count.

    The copy lies in the cache of `datasets` (`HF_DATASETS_CACHE`) and is made again when a file's path, size or time changes.

    Args:
        files: to read.

    Raises:
        DataError: if they have no rows, or cannot be read.
    """

    def __init__(self, files: RowFiles) -> None:
        self.files = files
        self._rows = _arrow_copy(files).with_format("arrow")
        if len(self) == 0:
            raise DataError(f"{files}: the file has no rows")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Content, Place]:
        """The row, and where it stands."""
        row = self._rows[int(index)]
        return row["content"][0].as_py(), self._place(row["file"][0].as_py(), row["line"][0].as_py())

    def __iter__(self) -> Iterator[tuple[Content, Place]]:
        """All rows, read in blocks: many times faster than one by one."""
        for table in self._rows.iter(_ROWS_AT_ONCE):
            columns = (table[name].to_pylist() for name in ("content", "file", "line"))
            for content, file, line in zip(*columns, strict=True):
                yield content, self._place(file, line)

    def _place(self, file: int, line: int) -> Place:
        return Place(self.files.paths[file], line)


@dataclass
class _CopyConfig(datasets.BuilderConfig):
    """The files, and what tells that one of them has changed."""

    files: RowFiles | None = None

    def create_config_id(self, config_kwargs: dict, custom_features: Any = None) -> str:
        return f"rows-{datasets.fingerprint.Hasher.hash(self.files.fingerprint())}"


class _Copy(datasets.ArrowBasedBuilder):
    """Writes columns content (the line, or the row of a parquet file as a struct), file (its number) and line (1-based)."""

    VERSION = datasets.Version("1.0.0")  # to be raised when the columns change
    BUILDER_CONFIG_CLASS = _CopyConfig

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo()

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator(name=datasets.Split.TRAIN)]

    def _generate_tables(self) -> Iterator[tuple[int, pa.Table]]:
        files = self.config.files
        return enumerate(_parquet_tables(files) if files.is_parquet else _line_tables(files))


def _arrow_copy(files: RowFiles) -> datasets.Dataset:
    # A bar for each of many small files would hide the lines that matter.
    quiet = files.size() < QUIET_BYTES and not datasets.are_progress_bars_disabled()
    if quiet:
        datasets.disable_progress_bars()
    try:
        builder = _Copy(dataset_name="ret_lightning_rows", files=files)
        builder.download_and_prepare()
        return builder.as_dataset(split="train")
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, DataError):
            raise error.__cause__ from None
        raise
    finally:
        if quiet:
            datasets.enable_progress_bars()


def _line_tables(files: RowFiles) -> Iterator[pa.Table]:
    for number in range(len(files.paths)):
        lines: list[bytes] = []
        numbers: list[int] = []
        size = 0
        for line, content in files.numbered_lines(number):
            lines.append(content)
            numbers.append(line)
            size += len(content)
            if size >= _TABLE_BYTES or len(lines) >= _TABLE_ROWS:
                yield _table(pa.array(lines, pa.binary()), number, numbers)
                lines, numbers, size = [], [], 0
        if lines:
            yield _table(pa.array(lines, pa.binary()), number, numbers)


def _parquet_tables(files: RowFiles) -> Iterator[pa.Table]:
    schema = files.parquet_schema()
    for stretch in files.stretches():
        yield from _row_group_tables(files, stretch, schema)


def _row_group_tables(files: RowFiles, stretch: Stretch, schema: pa.Schema) -> Iterator[pa.Table]:
    for first, batch in files.parquet_batches(stretch):
        columns = [
            batch.column(field.name).cast(field.type)
            if field.name in batch.schema.names
            else pa.nulls(len(batch), field.type)
            for field in schema
        ]
        content = pa.StructArray.from_arrays(columns, fields=list(schema))
        yield _table(content, stretch.file, range(first, first + len(batch)))


def _table(content: pa.Array, file: int, numbers: list[int] | range) -> pa.Table:
    return pa.table(
        {"content": content, "file": pa.array([file] * len(content), pa.int32()), "line": pa.array(numbers, pa.int64())}
    )

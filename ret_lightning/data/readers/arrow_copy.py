"""Files of rows copied into Arrow by `datasets`, which keeps the copy in its cache and maps it into memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import datasets
import pyarrow as pa

from ret_lightning.data.readers.row_files import RowFiles, Stretch
from ret_lightning.errors import DataError

QUIET_BYTES = 100_000_000  # files below are copied in about a second
_TABLE_BYTES, _TABLE_ROWS = 16 << 20, 100_000


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


def arrow_copy(files: RowFiles) -> datasets.Dataset:
    """The rows of files, mapped into memory: columns content, file and line.

    Raises:
        DataError: if a file has no rows or cannot be read, or the cache cannot be written.
    """
    # A bar for each of many small files would hide the lines that matter.
    quiet = files.size() < QUIET_BYTES and not datasets.are_progress_bars_disabled()
    if quiet:
        datasets.disable_progress_bars()
    try:
        builder = _Copy(dataset_name="ret_lightning_rows", files=files)
        builder.download_and_prepare()
        return builder.as_dataset(split="train")
    except (OSError, datasets.exceptions.DatasetGenerationError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if isinstance(cause, DataError):
            raise cause from None
        if not isinstance(cause, OSError):
            raise
        folder, reason = datasets.config.HF_DATASETS_CACHE, cause.strerror or str(cause)
        raise DataError(
            f"{folder}: the Arrow copy of {files} cannot be written there ({reason}); name another folder with the "
            "environment variable HF_DATASETS_CACHE, or read the rows without a copy with data.reading=streaming",
            code="row-cache-not-written",
            path=str(folder),
            reason=reason,
            variable="HF_DATASETS_CACHE",
        ) from error
    finally:
        if quiet:
            datasets.enable_progress_bars()


def _line_tables(files: RowFiles) -> Iterator[pa.Table]:
    for number in range(len(files.paths)):
        lines: list[bytes] = []
        numbers: list[int] = []
        size, any_yet = 0, False
        for line, content in files.numbered_lines(number):
            lines.append(content)
            numbers.append(line)
            size += len(content)
            if size >= _TABLE_BYTES or len(lines) >= _TABLE_ROWS:
                yield _table(pa.array(lines, pa.binary()), number, numbers)
                lines, numbers, size, any_yet = [], [], 0, True
        if lines:
            yield _table(pa.array(lines, pa.binary()), number, numbers)
        elif not any_yet:
            raise DataError(
                f"{files.paths[number]}: the file has no rows", code="row-file-blank", path=files.paths[number]
            )


def _parquet_tables(files: RowFiles) -> Iterator[pa.Table]:
    schema = files.parquet_schema()
    for stretch in files.stretches():
        yield from _row_group_tables(files, stretch, schema)


def _row_group_tables(files: RowFiles, stretch: Stretch, schema: pa.Schema) -> Iterator[pa.Table]:
    for first, batch in files.parquet_batches(stretch):
        columns = [_column(batch, field) for field in schema]
        content = pa.StructArray.from_arrays(columns, fields=list(schema))
        yield _table(content, stretch.file, range(first, first + len(batch)))


def _column(batch: pa.RecordBatch, field: pa.Field) -> pa.Array:
    """A column of a batch, of the type that it has in all files together."""
    column = batch.column(field.name) if field.name in batch.schema.names else None
    # Floats where other files have another type are all missing, see `RowFiles.parquet_schema`.
    if column is None or (pa.types.is_floating(column.type) and not pa.types.is_floating(field.type)):
        return pa.nulls(len(batch), field.type)
    return column.cast(field.type)


def _table(content: pa.Array, file: int, numbers: list[int] | range) -> pa.Table:
    return pa.table(
        {"content": content, "file": pa.array([file] * len(content), pa.int32()), "line": pa.array(numbers, pa.int64())}
    )

"""Arrow copies of row files: made by `datasets`, stored in its cache and mapped into memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import datasets
import pyarrow as pa

from ret_lightning.data.readers.row_files import FileSpan, RowFiles
from ret_lightning.errors import DataError

QUIET_BYTES = 100_000_000  # smaller files are copied without a progress bar, in about a second
_TABLE_BYTES, _TABLE_ROWS = 16 << 20, 100_000


@dataclass
class _CopyConfig(datasets.BuilderConfig):  # type: ignore[misc]  # datasets has no types
    """Configuration of the builder: the files, and a cache id that changes when one of them does."""

    files: RowFiles | None = None

    def create_config_id(self, config_kwargs: dict[str, Any], custom_features: Any = None) -> str:
        assert self.files is not None
        return f"rows-{datasets.fingerprint.Hasher.hash(self.files.fingerprint())}"


class _Copy(datasets.ArrowBasedBuilder):  # type: ignore[misc]  # datasets has no types
    """Builder of the columns `content` (a line, or a parquet row as a struct), `file` (its index) and `line` (1-based)."""

    VERSION = datasets.Version("1.0.0")  # increase it when the columns change
    BUILDER_CONFIG_CLASS = _CopyConfig

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo()

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator(name=datasets.Split.TRAIN)]

    def _generate_tables(self) -> Iterator[tuple[int, pa.Table]]:
        files = self.config.files
        return enumerate(_parquet_tables(files) if files.is_parquet else _line_tables(files))


def copy_to_arrow(files: RowFiles) -> datasets.Dataset:
    """Copy the rows of files into Arrow, or open the cached copy.

    Args:
        files: the files to copy.

    Returns:
        One row per non-blank line or parquet row, with the columns `content`, `file` and `line`, mapped into memory.

    Raises:
        DataError: if a file has no rows or cannot be read, or the cache cannot be written.
    """
    # A progress bar for each of many small files would hide other output.
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
            f"{folder}: cannot write the Arrow copy of {files} ({reason}); set the environment variable HF_DATASETS_CACHE to "
            "another folder, or set data.reading=streaming to read the rows without a copy",
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
    for span in files.spans():
        yield from _row_group_tables(files, span, schema)


def _row_group_tables(files: RowFiles, span: FileSpan, schema: pa.Schema) -> Iterator[pa.Table]:
    for first, batch in files.parquet_batches(span):
        columns = [_column(batch, field) for field in schema]
        content = pa.StructArray.from_arrays(columns, fields=list(schema))
        yield _table(content, span.file, range(first, first + len(batch)))


def _column(batch: pa.RecordBatch, field: pa.Field) -> pa.Array:
    """Return a column of a batch, cast to its type in the common schema of all files."""
    column = batch.column(field.name) if field.name in batch.schema.names else None
    # A float column whose common type is not float has no values, see `read_column_types`.
    if column is None or (pa.types.is_floating(column.type) and not pa.types.is_floating(field.type)):
        return pa.nulls(len(batch), field.type)
    return column.cast(field.type)


def _table(content: pa.Array, file: int, numbers: list[int] | range) -> pa.Table:
    return pa.table(
        {"content": content, "file": pa.array([file] * len(content), pa.int32()), "line": pa.array(numbers, pa.int64())}
    )

"""Column types of parquet files, made comparable between the files of one table."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet


def read_column_types(file: pyarrow.parquet.ParquetFile) -> pyarrow.Schema:
    """Return the column types of a parquet file, without metadata.

    A float column without any value gets the type null, which is compatible with every other type: pandas writes a column
    without values as floats, whatever its type is in other files.

    Args:
        file: an open parquet file.
    """
    import pyarrow

    schema = file.schema_arrow.remove_metadata()
    for i, column in enumerate(schema):
        if pyarrow.types.is_floating(column.type) and _is_empty(file, column.name):
            schema = schema.set(i, column.with_type(pyarrow.null()))
    return schema


def _is_empty(file: pyarrow.parquet.ParquetFile, name: str) -> bool:
    """Return whether every value of a float column is null or NaN."""
    import pyarrow.compute

    number = next(i for i in range(file.metadata.num_columns) if file.metadata.schema.column(i).path == name)
    for group in range(file.num_row_groups):
        statistics = file.metadata.row_group(group).column(number).statistics
        if statistics is not None and statistics.has_min_max:  # columns of nulls and NaN have no minimum and maximum
            return False
    values = file.read(columns=[name]).column(0)  # some writers omit minimum and maximum if any value is NaN
    return pyarrow.compute.all(pyarrow.compute.is_null(values, nan_is_null=True)).as_py()

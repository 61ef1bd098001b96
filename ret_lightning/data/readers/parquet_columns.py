"""The types of a parquet file's columns, so that files of one table fit together."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet


def column_types(file: pyarrow.parquet.ParquetFile) -> pyarrow.Schema:
    """Return the columns of a file, without metadata.

    A column of floats whose values are all missing is of type null, which fits any other: pandas writes a column without a
    value as floats, whatever it holds in other files.
    """
    import pyarrow

    schema = file.schema_arrow.remove_metadata()
    for i, column in enumerate(schema):
        if pyarrow.types.is_floating(column.type) and _all_missing(file, column.name):
            schema = schema.set(i, column.with_type(pyarrow.null()))
    return schema


def _all_missing(file: pyarrow.parquet.ParquetFile, name: str) -> bool:
    """Whether each value of a column of floats is null or NaN."""
    import pyarrow.compute

    number = next(i for i in range(file.metadata.num_columns) if file.metadata.schema.column(i).path == name)
    for group in range(file.num_row_groups):
        statistics = file.metadata.row_group(group).column(number).statistics
        if statistics is not None and statistics.has_min_max:  # nulls and NaN have none
            return False
    values = file.read(columns=[name]).column(0)  # some writers leave minimum and maximum out where there is any NaN
    return pyarrow.compute.all(pyarrow.compute.is_null(values, nan_is_null=True)).as_py()

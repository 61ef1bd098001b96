"""Types of parquet columns without values."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from ret_lightning.data.readers.parquet_columns import read_column_types


def types(path: Path, table: pyarrow.Table, **options: object) -> dict[str, pyarrow.DataType]:
    pyarrow.parquet.write_table(table, path, row_group_size=2, **options)
    with pyarrow.parquet.ParquetFile(path) as file:
        schema = read_column_types(file)
    assert schema.metadata is None
    return dict(zip(schema.names, schema.types, strict=True))


@pytest.mark.parametrize("missing", [[None] * 5, [math.nan] * 5, [None, math.nan, None, None, math.nan]])
@pytest.mark.parametrize("statistics", [True, False])
def test_float_column_without_values_is_null(tmp_path: Path, missing: list, statistics: bool) -> None:
    table = pyarrow.table({"a": pyarrow.array(missing, pyarrow.float64()), "b": list("abcde")})
    found = types(tmp_path / "a.parquet", table, write_statistics=statistics)
    assert found == {"a": pyarrow.null(), "b": pyarrow.string()}


@pytest.mark.parametrize("values", [[None, None, None, None, 1.5], [math.nan, math.nan, 0.0, math.nan, math.nan]])
@pytest.mark.parametrize("statistics", [True, False])
def test_float_column_with_one_value_keeps_type(tmp_path: Path, values: list, statistics: bool) -> None:
    table = pyarrow.table({"a": pyarrow.array(values, pyarrow.float32())})
    assert types(tmp_path / "a.parquet", table, write_statistics=statistics) == {"a": pyarrow.float32()}


def test_other_columns_without_values_keep_type(tmp_path: Path) -> None:
    table = pyarrow.table(
        {
            "text": pyarrow.array([None, None], pyarrow.string()),
            "nested": pyarrow.array([{"x": None}, None], pyarrow.struct([("x", pyarrow.float64())])),
            "after": pyarrow.array([None, None], pyarrow.float64()),  # its index among leaf columns differs
        }
    )
    found = types(tmp_path / "a.parquet", table.replace_schema_metadata({"pandas": "{}"}))
    assert found == {**dict(zip(table.schema.names, table.schema.types, strict=True)), "after": pyarrow.null()}

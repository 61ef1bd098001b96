"""Row files in all supported formats."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet

from ret_lightning.data.readers.row_files import RowFiles

READINGS = ("indexed", "streaming")
ROWS = [
    {"data_id": f"wit_{i}", "question": "é" * (i % 7), "passage_id": [f"p{i}", "q"], "answer": None} for i in range(300)
]


def uniform(row: dict) -> dict:
    """Return a row whose columns have one type each, as Parquet requires."""
    row = {name: value for name, value in row.items() if name != "extra"}
    for name in ("data_id", "passage_id"):
        if name in row and not isinstance(row[name], list):
            row[name] = str(row[name])
    if isinstance(row.get("passage_id"), str) and "data_id" in row:
        row["passage_id"] = [row["passage_id"]]
    if row.get("answer"):
        row["answer"] = [answer["wikidata"] if isinstance(answer, dict) else answer for answer in row["answer"]]
    return row


def write(path: Path, rows: list[dict] = ROWS) -> Path:
    """Write rows in the format of the suffix of the path."""
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=70)
        return path
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if path.suffix == ".gz":
        path.write_bytes(
            gzip.compress(text[:1000]) + gzip.compress(text[1000:])
        )  # two members, as `cat a.gz b.gz` makes
    elif path.suffix == ".zst":
        path.write_bytes(pyarrow.Codec("zstd").compress(text, asbytes=True))
    else:
        path.write_bytes(text)
    return path


def parsed(content) -> dict:
    return content if isinstance(content, dict) else json.loads(content)


def training_row(number: int, subset: str, ids: list[str]) -> dict:
    """Return a training row without images."""
    return {"data_id": f"{subset}_{number}", "question": f"q{number}?", "passage_id": ids, "passage_text": f"{ids[0]}."}


def jsonl_files(path: Path, rows: Sequence[dict | str]) -> RowFiles:
    """Write a JSON Lines file with a blank first line; strings are written unchanged."""
    path.write_text("\n" + "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return RowFiles([path])

"""Rows by their number: files of rows, copied once through `datasets` into Arrow, which is mapped into memory.

Lines are kept as text and parsed one by one (rows.py): the columns of ReT-M2KR mix strings, numbers, lists and objects, which
Arrow's own JSON reader refuses, and a parsed table no longer has the line number of a problem.
"""

from __future__ import annotations

from ret_lightning.data.readers.fields import Content
from ret_lightning.data.readers.row_files import RowFiles, parquet_row
from ret_lightning.data.readers.source_location import Place


class IndexedRows:
    """The rows of files, by number, in their order; blank lines do not count.

    The copy lies in the cache of `datasets` (`HF_DATASETS_CACHE`) and is made again when a file's path, size or time changes.

    Args:
        files: to read.

    Raises:
        DataError: if they have no rows, or cannot be read.
    """

    def __init__(self, files: RowFiles) -> None:
        from ret_lightning.data.readers.arrow_copy import arrow_copy  # brings `datasets`, which takes a second

        self.files = files
        self._rows = arrow_copy(files).with_format("arrow")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Content, Place]:
        """The row, and where it stands."""
        row = self._rows[index]
        file, line = row["file"][0].as_py(), row["line"][0].as_py()
        content = row["content"][0]
        return parquet_row(content) if self.files.is_parquet else content.as_py(), Place(self.files.paths[file], line)

"""Random access to the rows of files, through an Arrow copy that is mapped into memory.

Lines are stored as text and parsed one by one, because the columns of ReT-M2KR mix strings, numbers, lists and objects. Arrow's
own JSON reader rejects such columns, and a parsed table does not record the line of each row.
"""

from __future__ import annotations

from ret_lightning.data.readers.fields import Content
from ret_lightning.data.readers.row_files import RowFiles, decode_row
from ret_lightning.data.readers.source_location import SourceLocation


class IndexedRows:
    """The rows of files by their index, in file order, without blank lines.

    The Arrow copy is stored in the cache of `datasets` (`HF_DATASETS_CACHE`) and is rebuilt when the path, the size or the
    modification time of a file changes.

    Args:
        files: the files to read.

    Raises:
        DataError: if a file has no rows or cannot be read, or the cache cannot be written.
    """

    def __init__(self, files: RowFiles) -> None:
        from ret_lightning.data.readers.arrow_copy import copy_to_arrow  # imports `datasets`, which takes a second

        self.files = files
        self._rows = copy_to_arrow(files).with_format("arrow")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Content, SourceLocation]:
        """Return a row and its source location."""
        row = self._rows[index]
        file, line = row["file"][0].as_py(), row["line"][0].as_py()
        content = row["content"][0]
        return (
            decode_row(content) if self.files.is_parquet else content.as_py(),
            SourceLocation(self.files.paths[file], line),
        )

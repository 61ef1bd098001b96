"""The passages of an index: read from files, and stored with their texts in a memory-mapped Arrow file."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ret_lightning.data.readers.row_files import RowFiles
from ret_lightning.data.rows import Passage, parse_passage
from ret_lightning.errors import DataError
from ret_lightning.runtime.atomic_files import whole_file

log = logging.getLogger(__name__)

ROWS_PER_BATCH = 4096


class PassageRecord(NamedTuple):
    """The fields of a passage that a search displays: id, text and image path."""

    passage_id: str
    text: str | None
    image_path: str | None


def read_passages(files: str | Path | Sequence[Passage]) -> list[Passage]:
    """Read the passages of a file or of all files that match a pattern, or check the passages that are passed.

    Passages without text and image are kept, as in the candidate pool of an evaluation; a warning reports their number.

    Args:
        files: a file or pattern of `.jsonl`, `.jsonl.gz`, `.jsonl.zst` or `.parquet` files; or the passages.

    Returns:
        The passages.

    Raises:
        DataError: if there are no passages, a row is invalid, or an id is not unique. The error names file and line.
    """
    source: RowFiles | str = "passages"
    if isinstance(files, str | Path):
        source = RowFiles.named(Path(), str(files), "passages")
        passages = [parse_passage(content, location) for content, location in source]
    else:
        passages = list(files)
    if not passages:
        raise no_rows_error(source)
    firsts: dict[str, Passage] = {}
    for passage in passages:
        if passage.passage_id in firsts:
            first = firsts[passage.passage_id]
            raise DataError(
                f"{passage.location}: duplicate passage_id {passage.passage_id!r}, first at {first.location}; ids must be "
                "unique",
                code="passage-id-twice",
                path=passage.location.file,
                line=passage.location.line,
                found=passage.passage_id,
            )
        firsts[passage.passage_id] = passage
    empty = [passage for passage in passages if passage.text is None and passage.image is None]
    if empty:
        log.warning(
            "%s: %d of %d passages have neither text nor image, the first is %r at %s; they are indexed and may rank high",
            *(source, len(empty), len(passages), empty[0].passage_id, empty[0].location),
        )
    return passages


def describe_source(files: str | Path | Sequence[Passage]) -> str:
    """Return the name of the argument of `read_passages` in messages."""
    return str(files) if isinstance(files, str | Path) else f"{len(files)} passages"


def check_ids_are_new(passages: list[Passage], known: tuple[str, ...], name: str) -> None:
    """Check that no passage is in the index.

    Args:
        passages: passages to add.
        known: ids in the index.
        name: name of the passages in the message.

    Raises:
        DataError: if an id is in the index.
    """
    known_ids = set(known)
    existing = [passage for passage in passages if passage.passage_id in known_ids]
    if existing:
        raise DataError(
            f"{name}: {len(existing)} of {len(passages)} passages are already in the index, the first is "
            f"{existing[0].passage_id!r} at {existing[0].location}; remove them from the file",
            code="passages-indexed-already",
            count=len(existing),
            found=existing[0].passage_id,
        )


def no_rows_error(files: RowFiles | str) -> DataError:
    """Return the error for files, or a list, without rows."""
    return DataError(
        f"{files}: expected at least one row, got none",
        code="files-without-rows",
        paths=tuple(getattr(files, "paths", ())),
    )


def write_passage_records(file: Path, passages: Iterable[PassageRecord]) -> None:
    """Write an Arrow file, which is replaced only when it is complete."""
    import pyarrow

    schema = pyarrow.schema([(name, pyarrow.large_string()) for name in PassageRecord._fields])
    columns = zip(*passages, strict=True)
    table = pyarrow.table([pyarrow.array(column, pyarrow.large_string()) for column in columns], schema=schema)
    with whole_file(file) as unfinished, pyarrow.ipc.new_file(str(unfinished), schema) as writer:
        writer.write_table(table.combine_chunks(), max_chunksize=ROWS_PER_BATCH)


class PassageRecords(Sequence[PassageRecord]):
    """The rows of a file written by `write_passage_records`, read on access.

    Args:
        file: the Arrow file.

    Raises:
        DataError: if the file is not readable.
    """

    def __init__(self, file: Path) -> None:
        import pyarrow

        try:
            self._file = pyarrow.ipc.open_file(pyarrow.memory_map(str(file)))
            last = self._file.num_record_batches - 1
            self._count = last * ROWS_PER_BATCH + self._file.get_batch(last).num_rows
        except (OSError, pyarrow.ArrowException) as error:
            reason = str(error).splitlines()[0]
            raise DataError(
                f"{file}: not readable ({reason}); index the passages again",
                code="passage-records-unreadable",
                path=file,
            ) from None

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[PassageRecord]:
        for batch in range(self._file.num_record_batches):
            yield from map(PassageRecord, *(column.to_pylist() for column in self._file.get_batch(batch).columns))

    def __getitem__(self, row: int) -> PassageRecord:  # type: ignore[override]  # slices are not supported
        batch, offset = divmod(range(self._count)[row], ROWS_PER_BATCH)
        columns = self._file.get_batch(batch).columns
        return PassageRecord(*(column[offset].as_py() for column in columns))

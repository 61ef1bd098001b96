"""What is known of the passages of an index besides their vectors, in an Arrow file that is mapped, not read."""

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

ROWS_A_BATCH = 4096


class PassageRecord(NamedTuple):
    """What a search shows of a passage: its id, its text, and its image's path as its row has it."""

    passage_id: str
    text: str | None
    image_path: str | None


def read_passages(files: str | Path | Sequence[Passage]) -> list[Passage]:
    """Read the passages of a file, or of all files that a pattern matches; check those that are given.

    Those without text and image are kept, as in a pool that is evaluated; a warning tells how many they are.

    Args:
        files: any that `RowFiles` reads: `.jsonl`, `.jsonl.gz`, `.jsonl.zst`, `.parquet`; or the passages.

    Raises:
        DataError: naming file and row of the first broken one, or of the second with the same id.
    """
    if isinstance(files, str | Path):
        rows = RowFiles.named(Path(), str(files), "passages")
        passages = [parse_passage(content, place) for content, place in rows]
    else:
        rows, passages = "passages", list(files)
    if not passages:
        raise no_rows(rows)
    firsts: dict[str, Passage] = {}
    for passage in passages:
        first = firsts.setdefault(passage.passage_id, passage)
        if first is not passage:
            raise DataError(
                f"{passage.location}: passage_id {passage.passage_id!r} comes a second time, first at {first.location}; "
                "ids must be unique",
                code="passage-id-twice",
                path=passage.location.file,
                line=passage.location.line,
                found=passage.passage_id,
            )
    empty = [passage for passage in passages if passage.text is None and passage.image is None]
    if empty:
        log.warning(
            "%s: %d of %d passages have neither text nor image, the first is %r at %s; they are kept, and may rank high",
            *(rows, len(empty), len(passages), empty[0].passage_id, empty[0].location),
        )
    return passages


def name_of(files: str | Path | Sequence[Passage]) -> str:
    """What messages call the argument of `read_passages`."""
    return str(files) if isinstance(files, str | Path) else f"{len(files)} passages"


def refuse_known(passages: list[Passage], known: tuple[str, ...], name: str) -> None:
    """Raises DataError where an id is in the index already."""
    there = set(known)
    twice = [passage for passage in passages if passage.passage_id in there]
    if twice:
        raise DataError(
            f"{name}: {len(twice)} of {len(passages)} passages are in the index already, the first is "
            f"{twice[0].passage_id!r} at {twice[0].location}; give new ones only",
            code="passages-indexed-already",
            count=len(twice),
            found=twice[0].passage_id,
        )


def no_rows(files: RowFiles | str) -> DataError:
    """The error of files, or of a list called so, without a row."""
    return DataError(f"{files}: no rows", code="files-without-rows", paths=tuple(getattr(files, "paths", ())))


def write_passage_records(file: Path, passages: Iterable[PassageRecord]) -> None:
    """Writes an Arrow file, whole or not at all."""
    import pyarrow

    schema = pyarrow.schema([(name, pyarrow.large_string()) for name in PassageRecord._fields])
    columns = zip(*passages, strict=True)
    table = pyarrow.table([pyarrow.array(column, pyarrow.large_string()) for column in columns], schema=schema)
    with whole_file(file) as unfinished, pyarrow.ipc.new_file(str(unfinished), schema) as writer:
        writer.write_table(table.combine_chunks(), max_chunksize=ROWS_A_BATCH)


class PassageRecords(Sequence[PassageRecord]):
    """The rows of a file of `write_passage_records`; each is read when it is asked for.

    Raises:
        DataError: if the file cannot be read.
    """

    def __init__(self, file: Path) -> None:
        import pyarrow

        try:
            self._file = pyarrow.ipc.load_retriever(pyarrow.memory_map(str(file)))
            last = self._file.num_record_batches - 1
            self._count = last * ROWS_A_BATCH + self._file.get_batch(last).num_rows
        except (OSError, pyarrow.ArrowException) as error:
            reason = str(error).splitlines()[0]
            raise DataError(
                f"{file}: cannot be read ({reason}); index the passages again",
                code="shown-passages-unreadable",
                path=file,
            ) from None

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[PassageRecord]:
        for batch in range(self._file.num_record_batches):
            yield from map(PassageRecord, *(column.to_pylist() for column in self._file.get_batch(batch).columns))

    def __getitem__(self, row: int) -> PassageRecord:
        batch, place = divmod(range(self._count)[row], ROWS_A_BATCH)
        columns = self._file.get_batch(batch).columns
        return PassageRecord(*(column[place].as_py() for column in columns))

"""Checks that the files of a corpus exist, before any of them is scanned or copied."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal

from ret_lightning.data.bad_rows import Tally, parse_rows
from ret_lightning.data.images.sources import ImageFolder
from ret_lightning.data.layouts.base import Layout
from ret_lightning.data.readers.row_files import RowFiles
from ret_lightning.data.rows import Passage, Query, TrainingPair
from ret_lightning.errors import DataError

Needed = Literal["train", "val", "test"]

SAMPLED_ROWS = 1_000  # rows at the beginning of each file that are searched for image paths


def check_required_files(layout: Layout, names: Sequence[str], needed: Collection[Needed]) -> None:
    """Check that the row files and the images of a corpus exist; at most `SAMPLED_ROWS` rows of each file are read.

    The image folder may be missing if no sampled row names an image file: a corpus may be text only, or store its images in
    the rows.

    Args:
        layout: layout of the corpus.
        names: the evaluated subsets.
        needed: the splits to check: `train` for the training files, `val` and `test` for the queries and candidate pools.

    Raises:
        DataError: if a file, folder or archive is missing or cannot be read; the message names the first one.
    """
    try:
        found = list(_row_files(layout, names, needed))
    except OSError as error:
        raise DataError(
            f"{error.filename}: cannot read the file ({error.strerror}); grant read permission to the current user",
            code="corpus-file-not-readable",
            path=str(error.filename),
            reason=error.strerror,
        ) from error
    source = layout.image_source()
    if isinstance(source, ImageFolder):
        try:
            source.check()
        except DataError:
            if any(isinstance(image, str) for rows, parse in found for image in _sampled_images(rows, parse)):
                raise


def _row_files(
    layout: Layout, names: Sequence[str], needed: Collection[Needed]
) -> Iterator[tuple[RowFiles, Callable[..., Any]]]:
    if "train" in needed:
        yield layout.training_files(), layout.parser.parse_pair
    for split in ("val", "test"):
        for name in names if split in needed else ():
            yield layout.query_files(name, split), layout.parser.parse_query
            yield layout.passage_files(name), layout.parser.parse_passage


def _sampled_images(rows: RowFiles, parse: Callable[..., Any]) -> Iterator[str | bytes | None]:
    """Iterate over the images of the valid rows among the first `SAMPLED_ROWS` rows."""
    for row in parse_rows(islice(rows, SAMPLED_ROWS), parse, Tally()):
        for side in _sides(row):
            yield side.image


def _sides(row: Query | Passage | TrainingPair) -> Iterable[Query | Passage]:
    return (row.query, row.passage, *row.negatives) if isinstance(row, TrainingPair) else (row,)

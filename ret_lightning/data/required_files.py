"""Whether the files of a corpus exist, checked before any of them is scanned or copied."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal

from ret_lightning.data.bad_rows import Tally, parsed_rows
from ret_lightning.data.images.sources import ImageFolder
from ret_lightning.data.layouts.base import Layout
from ret_lightning.data.readers.row_files import RowFiles
from ret_lightning.data.rows import Passage, Query, TrainingPair
from ret_lightning.errors import DataError

Needed = Literal["train", "val", "test"]

SAMPLED_ROWS = 1_000  # first rows per file in which an image path is looked for


def check_required_files(layout: Layout, names: Sequence[str], needed: Collection[Needed]) -> None:
    """Find the row files and the images of a corpus; of the row files at most the first rows are read.

    The image folder may be missing if no row that is read names an image file: a corpus may be text only, or hold its images
    in the rows.

    Args:
        layout: of the corpus.
        names: the evaluated subsets.
        needed: `train`: the training files; `val` and `test`: queries and pools of these splits.

    Raises:
        DataError: naming the first file, folder or archive that is missing or cannot be read.
    """
    try:
        found = list(_row_files(layout, names, needed))
    except OSError as error:
        raise DataError(
            f"{error.filename}: cannot be read ({error.strerror}); make it readable for the user who runs the command",
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
    """The images of the first rows that can be parsed."""
    for row in parsed_rows(islice(rows, SAMPLED_ROWS), parse, Tally()):
        for part in _parts(row):
            yield part.image


def _parts(row: Query | Passage | TrainingPair) -> Iterable[Query | Passage]:
    return (row.query, row.passage, *row.negatives) if isinstance(row, TrainingPair) else (row,)

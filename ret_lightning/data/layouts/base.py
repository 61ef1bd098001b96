"""The interface of a corpus layout: which files hold what, how their rows are read, and what is published about it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ret_lightning.data.images.sources import ImageSource, image_source
from ret_lightning.data.readers.row_files import RowFiles
from ret_lightning.data.rows import M2KR_ROWS, RowParser
from ret_lightning.data.types import Split


@dataclass(frozen=True)
class PublishedResults:
    """What a publication reports on a corpus.

    Attributes:
        corpus: its name, for the title of a table.
        metrics: subset and metric of each column, in the order of the publication; `recall@5`, for example.
        models: model to the values of these columns.
    """

    corpus: str
    metrics: tuple[tuple[str, str], ...]
    models: Mapping[str, tuple[float, ...]]


class Layout(ABC):
    """Where a corpus is stored, and how it is read. To add one: subclass, and name it in a config of the group `data`.

    The data module calls `prepare` before everything else, on one process per machine in training, and on each process before
    files are opened; the other methods only find files. A row is read by `parser`.

    Attributes:
        root: the folder of the corpus.
        images: where images are, relative to `root`; see `image_source`.
        parser: reads the rows of all files.
        evaluated_subsets: names of the corpus's evaluated subsets, in the order of its publication. Training rows are assigned
            to subsets by these names, to `training_subsets`, and to the subsets that have files.
        training_subsets: names of subsets that only have training rows.
        is_generated: whether `prepare` makes the files, so that they may be missing before.
        published: results to compare with, and the metrics to report first; None: none.
    """

    root: Path
    images: str | Sequence[str] = ""
    parser: RowParser = M2KR_ROWS
    evaluated_subsets: ClassVar[tuple[str, ...]] = ()
    training_subsets: ClassVar[tuple[str, ...]] = ()
    is_generated: ClassVar[bool] = False
    published: ClassVar[PublishedResults | None] = None

    def prepare(self) -> None:  # noqa: B027  most corpora are there already
        """Make or fetch what is not there; safe to call from several processes at once, and again."""

    @abstractmethod
    def training_files(self) -> RowFiles:
        """The files of all training rows; raises DataError if there are none."""

    @abstractmethod
    def query_files(self, subset: str, split: Split) -> RowFiles:
        """The queries of a subset; raises DataError, naming the file, if there are none."""

    @abstractmethod
    def passage_files(self, subset: str) -> RowFiles:
        """The candidate pool of a subset; raises DataError, naming the file, if there is none."""

    @abstractmethod
    def subsets(self) -> list[str]:
        """The names of the subsets that have test queries, those of `evaluated_subsets` first; empty where there are none."""

    def has_validation(self, subset: str) -> bool:
        """Whether the subset has validation queries of its own."""
        return False

    def pools(self) -> list[str]:
        """The names of the subsets that have a candidate pool."""
        return self.subsets()

    def image_source(self) -> ImageSource:
        """Where image paths lead; the first call indexes archives."""
        return image_source(self.images, self.root)

    def known_subsets(self) -> tuple[str, ...]:
        """All names that this layout knows, with or without files."""
        return (*self.evaluated_subsets, *self.training_subsets)


def published_results() -> Iterator[PublishedResults]:
    """The published results of all layouts that are imported, each once."""
    seen: list[PublishedResults] = []
    waiting: list[type[Layout]] = [Layout]
    while waiting:
        layout = waiting.pop(0)
        waiting += layout.__subclasses__()
        if layout.published is not None and not any(layout.published is other for other in seen):
            seen.append(layout.published)
            yield layout.published

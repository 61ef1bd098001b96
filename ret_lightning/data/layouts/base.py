"""The interface of a corpus layout: its files, the parser of its rows, and published results on it."""

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
    """The results that a publication reports on a corpus.

    Attributes:
        corpus: name of the corpus, for table titles.
        metrics: (subset, metric) of each column, in the order of the publication, such as ("okvqa", "recall@5").
        models: values of these columns, in [0, 1], by the name of the model.
    """

    corpus: str
    metrics: tuple[tuple[str, str], ...]
    models: Mapping[str, tuple[float, ...]]


class Layout(ABC):
    """Base class of corpus layouts: where the files of a corpus are, and how their rows are parsed.

    To add a layout, subclass this class and set it as `layout` in a config of the group `data`. The data module calls `prepare`
    before any other method: in `prepare_data` on one process per machine, and in `setup` on every process. The other
    methods only locate files.

    Attributes:
        root: folder of the corpus.
        images: folders or archives of the images, relative to `root`, as in `image_source`.
        parser: parser of the rows of all files.
        evaluated_subsets: names of the evaluated subsets, in the order of the publication. The subset of a training row is one
            of these, one of `training_subsets`, or a subset that has files.
        training_subsets: names of the subsets that have training rows only.
        is_generated: whether `prepare` creates the files, so that they may not exist before.
        published: results to compare with; they also define the main metrics of the corpus. None: none.
    """

    root: Path
    images: str | Sequence[str] = ""
    parser: RowParser = M2KR_ROWS
    evaluated_subsets: ClassVar[tuple[str, ...]] = ()
    training_subsets: ClassVar[tuple[str, ...]] = ()
    is_generated: ClassVar[bool] = False
    published: ClassVar[PublishedResults | None] = None

    def prepare(self) -> None:  # noqa: B027  most corpora already exist
        """Create or download missing files; several processes may call this at the same time and repeatedly."""

    @abstractmethod
    def training_files(self) -> RowFiles:
        """Return the files of all training rows.

        Raises:
            DataError: if there are none.
        """

    @abstractmethod
    def query_files(self, subset: str, split: Split) -> RowFiles:
        """Return the files of the queries of a subset.

        Args:
            subset: name of the subset.
            split: `val` or `test`.

        Raises:
            DataError: if there is none; the message contains the expected path.
        """

    @abstractmethod
    def passage_files(self, subset: str) -> RowFiles:
        """Return the files of the candidate pool of a subset.

        Args:
            subset: name of the subset.

        Raises:
            DataError: if there is none; the message contains the expected path.
        """

    @abstractmethod
    def subsets(self) -> list[str]:
        """Return the names of the subsets that have test queries, those of `evaluated_subsets` first; may be empty."""

    def has_validation(self, subset: str) -> bool:
        """Return whether the subset has its own validation queries."""
        return False

    def pools(self) -> list[str]:
        """Return the names of the subsets that have a candidate pool."""
        return self.subsets()

    def image_source(self) -> ImageSource:
        """Return the source that image paths refer to; the first call indexes image archives."""
        return image_source(self.images, self.root)

    def known_subsets(self) -> tuple[str, ...]:
        """Return the names of all subsets of the layout, with or without files."""
        return (*self.evaluated_subsets, *self.training_subsets)


def published_results() -> Iterator[PublishedResults]:
    """Yield the published results of all imported layouts, each once."""
    seen: list[PublishedResults] = []
    layouts: list[type[Layout]] = [Layout]
    while layouts:
        layout = layouts.pop(0)
        layouts += layout.__subclasses__()
        if layout.published is not None and not any(layout.published is other for other in seen):
            seen.append(layout.published)
            yield layout.published

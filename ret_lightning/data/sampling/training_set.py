"""The training rows of a run: the files, how they are read, and the mixture of the subsets."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Literal, cast

import numpy as np

from ret_lightning.data.layouts.m2kr import M2KR_SUBSETS, M2KR_TRAINING_SUBSETS
from ret_lightning.data.layouts.subset_names import UNKNOWN, SubsetNames
from ret_lightning.data.readers.indexed_rows import IndexedRows
from ret_lightning.data.readers.row_files import RowFiles
from ret_lightning.data.rows import M2KR_ROWS, RowParser
from ret_lightning.data.sampling.batch_samplers import EpochBatches, GlobalBatches
from ret_lightning.data.sampling.holdout import Holdout
from ret_lightning.data.sampling.mixture import Mixture, RowMixture, check_factors, check_names
from ret_lightning.data.sampling.streaming import RowStream, StreamedBatches
from ret_lightning.data.sampling.subset_index import RowSubsets, scan_subsets
from ret_lightning.errors import ConfigError, DataError

log = logging.getLogger(__name__)

Reading = Literal["indexed", "streaming"]

_ROWS_WITH_NAMES = 1_000  # first rows of a stream whose subset names are accepted in settings


@dataclass(frozen=True)
class TrainingChoice:
    """The settings that select training rows.

    Attributes:
        reading: `data.reading`, `indexed` or `streaming`.
        shuffle_buffer: `data.shuffle_buffer`, number of rows in the shuffle buffer when streaming, at least 1.
        subsets: `data.subsets`, names of the subsets; None: all.
        repeat: `data.repeat`, samples per row and epoch of each subset; None: 1.
        weights: `data.weights`, share of the epoch of each subset, instead of `repeat`.
        limit: `data.limit`, maximum number of rows, at least 1; None: all.
        one_subset_batches: `data.one_subset_batches`, whether all rows of a global batch belong to one subset.

    Raises:
        ConfigError: if a setting is out of range, or settings are contradictory.
    """

    reading: Reading = "indexed"
    shuffle_buffer: int = 10_000
    subsets: Sequence[str] | None = None
    repeat: Mapping[str, float] | None = None
    weights: Mapping[str, float] | None = None
    limit: int | None = None
    one_subset_batches: bool = False

    def __post_init__(self) -> None:
        if self.subsets is not None and len(set(self.subsets)) < len(self.subsets):
            raise ConfigError(
                f"data.subsets={list(self.subsets)}: a subset is listed twice; list each subset once",
                code="subset-named-twice",
                key="data.subsets",
                found=list(self.subsets),
            )
        if self.reading not in ("indexed", "streaming"):
            raise ConfigError(
                f"data.reading={self.reading}: expected indexed or streaming",
                code="unknown-reading",
                key="data.reading",
                found=self.reading,
                allowed=("indexed", "streaming"),
            )
        if self.shuffle_buffer < 1:
            raise ConfigError(
                f"data.shuffle_buffer={self.shuffle_buffer}: expected at least 1",
                code="shuffle-buffer-out-of-range",
                key="data.shuffle_buffer",
                found=self.shuffle_buffer,
            )
        if self.limit is not None and self.limit < 1:
            raise ConfigError(
                f"data.limit={self.limit}: expected at least 1, or null for all rows",
                code="data-limit-out-of-range",
                key="data.limit",
                found=self.limit,
            )
        if self.repeat is not None and self.weights is not None:
            raise ConfigError(
                "data.repeat and data.weights are both set, but only one of them can define the mixture; set the other to null",
                code="repeat-and-weights",
            )
        for setting, factors in (("data.repeat", self.repeat), ("data.weights", self.weights)):
            if factors is not None:
                check_factors(setting, factors)


class TrainingSet:
    """The training rows of a run.

    Args:
        files: files of the rows.
        choice: settings that select the rows.
        evaluated: names of the subsets with evaluation files.
        named: names of subsets in other settings, each with the key of the setting.
        seed: seed of the order and of the fractional parts of the mixture.
        holdout: rows held out for validation; None: none.
        corpus: names of the subsets that the layout knows.
        parser: parser of the rows.

    Raises:
        ConfigError: if a setting contains an unknown subset.
        DataError: if no row is left, or a file cannot be read.
    """

    def __init__(
        self,
        files: RowFiles,
        choice: TrainingChoice,
        evaluated: Sequence[str],
        named: Mapping[str, str],
        seed: int = 0,
        holdout: Holdout | None = None,
        corpus: Sequence[str] = (*M2KR_SUBSETS, *M2KR_TRAINING_SUBSETS),
        parser: RowParser = M2KR_ROWS,
    ) -> None:
        self.files = files
        self.parser = parser
        self.choice = choice
        self.seed = seed
        self.holdout = holdout if holdout is not None and len(holdout.removed) else None
        settings = dict.fromkeys(choice.repeat or {}, "data.repeat")
        settings |= dict.fromkeys(choice.weights or {}, "data.weights") | dict(named)
        known = tuple(dict.fromkeys((*corpus, *evaluated, *(choice.subsets or ()))))
        self.names = SubsetNames((*known, *settings))
        self._check_names(settings, known)
        rows = self._counts() if choice.weights is not None else None
        self.mixture = Mixture.from_settings(choice.repeat, choice.weights, choice.subsets, rows)

    def __str__(self) -> str:
        removed = len(self.holdout.removed) if self.holdout else 0
        rows = (
            "rows streamed" if self.choice.reading == "streaming" else f"{len(cast(Sized, self.rows)) - removed} rows"
        )
        return f"{rows} from {self.files}{f'; {removed} rows removed for validation' if removed else ''}"

    @cached_property
    def subsets(self) -> RowSubsets:
        """The subset of each row; the first access scans all files."""
        return scan_subsets(self.files, self.names.known, self.parser)

    @cached_property
    def rows(self) -> IndexedRows | RowFiles:
        """The container in which a dataset looks up `SampledRow.row`."""
        return IndexedRows(self.files) if self.choice.reading == "indexed" else self.files

    def batches(self, batch_size: int, rank: int = 0, world_size: int = 1) -> EpochBatches:
        """Return the batch sampler of one rank.

        Args:
            batch_size: rows per batch and rank, at least 1.
            rank: rank of the process, in [0, world_size).
            world_size: number of ranks.

        Raises:
            DataError: if the rows are too few for one batch with a row on each rank.
        """
        if self.choice.reading == "streaming":
            stream = RowStream(
                self.files, self.names, self.mixture, self.choice.shuffle_buffer, self.choice.limit, self.seed,
                self.holdout.removed_locations if self.holdout else frozenset(), self.parser,
            )  # fmt: skip
            return StreamedBatches(stream, batch_size, rank, world_size, self.choice.one_subset_batches)
        rows, mixture = len(cast(Sized, self.rows)), None
        if not self.mixture.is_plain or self.choice.one_subset_batches or self.holdout:
            mixture = self._row_mixture
        elif self.choice.limit is not None:
            rows = min(rows, self.choice.limit)
        batches = GlobalBatches(
            rows, batch_size, self.seed, rank, world_size, mixture=mixture, one_subset=self.choice.one_subset_batches
        )
        if len(batches) == 0:
            samples = rows if mixture is None else sum(mixture.sizes)
            raise DataError(
                f"{self.files}: {samples} rows per epoch are too few for one batch on {world_size} ranks",
                code="too-few-training-rows",
                path=str(self.files),
                rows=samples,
                ranks=world_size,
            )
        return batches

    def _counts(self) -> dict[str, int]:
        """Return the number of training rows of each subset, without removed rows."""
        codes, names = self.subsets.codes, self.subsets.names
        removed = self.holdout.removed if self.holdout else np.zeros(0, np.int64)
        counts = np.bincount(codes, minlength=len(names)) - np.bincount(codes[removed], minlength=len(names))
        return dict(zip(names, counts.tolist(), strict=True))

    @cached_property
    def _row_mixture(self) -> RowMixture:
        removed = self.holdout.removed if self.holdout else None
        mixture = RowMixture(self.subsets, self.mixture, self.choice.limit, removed)
        if not any(mixture.sizes):
            found = ", ".join(f"{name} ({count})" for name, count in self._counts().items())
            raise DataError(
                f"{self.files}: data.subsets, data.repeat and data.weights select no training rows; rows per subset: {found}",
                code="mixture-without-rows",
                path=str(self.files),
                rows=self._counts(),
            )
        counts = zip(self.subsets.names, mixture.sizes, strict=True)
        log.info("training: rows per epoch: %s", ", ".join(f"{name} {size}" for name, size in counts))
        for name in self.choice.repeat or {}:
            if name not in self.subsets.names:
                log.warning("data.repeat.%s has no effect: the subset has no training rows", name)
        unknown = self._counts().get(UNKNOWN)
        if unknown and self.mixture.factor(UNKNOWN) > 0:
            log.warning("%s: the subset of %d rows is unknown; these rows are used for training", self.files, unknown)
        return mixture

    def _check_names(self, settings: Mapping[str, str], known: Sequence[str]) -> None:
        known = (*known, UNKNOWN)
        if all(name in known for name in settings):
            return
        if self.choice.reading == "indexed":
            seen: Collection[str] = self.subsets.names
        else:
            contents = (row.content for span in self.files.spans() for row in self.files.read(span))
            seen = {self.names(*self.parser.parse_subset(content)) for content in islice(contents, _ROWS_WITH_NAMES)}
        for name, setting in settings.items():
            check_names(setting, [name], list(dict.fromkeys((*known, *seen))))

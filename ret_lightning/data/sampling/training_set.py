"""The training rows as the config asks for them: which files, read in which way, in which mixture."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Literal

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

_NAMES_FROM = 1_000  # first rows of a stream that may bring names which nothing else knows


@dataclass(frozen=True)
class TrainingChoice:
    """What of the training rows is used, and how; see `M2KRDataModule` for the meaning.

    Raises:
        ConfigError: if settings contradict each other or are out of range.
    """

    reading: Reading = "indexed"
    shuffle_buffer: int = 10_000
    subsets: Sequence[str] | None = None
    repeat: Mapping[str, float] | None = None
    weights: Mapping[str, float] | None = None
    limit: int | None = None
    one_subset_batches: bool = False

    def __post_init__(self) -> None:
        if self.reading not in ("indexed", "streaming"):
            raise ConfigError(
                f"data.reading={self.reading} must be indexed or streaming",
                code="unknown-reading",
                found=self.reading,
                allowed=("indexed", "streaming"),
            )
        if self.shuffle_buffer < 1:
            raise ConfigError(
                f"data.shuffle_buffer={self.shuffle_buffer} must be at least 1",
                code="shuffle-buffer-out-of-range",
                found=self.shuffle_buffer,
            )
        if self.limit is not None and self.limit < 1:
            raise ConfigError(
                f"data.limit={self.limit} must be at least 1, or null for all rows",
                code="data-limit-out-of-range",
                found=self.limit,
            )
        if self.repeat is not None and self.weights is not None:
            raise ConfigError(
                "data.repeat and data.weights both set the mixture; set one of them to null",
                code="repeat-and-weights",
            )
        for setting, factors in (("data.repeat", self.repeat), ("data.weights", self.weights)):
            if factors is not None:
                check_factors(setting, factors)


class TrainingSet:
    """The training rows of a run.

    Args:
        files: of the rows.
        choice: what of them is used.
        evaluated: the subsets that have evaluation files.
        named: subsets that other settings name, each with the setting.
        seed: of the order and of the fractions of the mixture.
        holdout: what is held out of these files for validation; None: nothing.
        corpus: the subsets that the layout knows.
        parser: of the rows.

    Raises:
        ConfigError: if a subset is named that there is not.
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
        rows = "rows streamed" if self.choice.reading == "streaming" else f"{len(self.rows) - removed} rows"
        return f"{rows} from {self.files}{f'; {removed} are removed for validation' if removed else ''}"

    @cached_property
    def subsets(self) -> RowSubsets:
        """The subset of each row: a scan of all files, the first time."""
        return scan_subsets(self.files, self.names.known, self.parser)

    @cached_property
    def rows(self) -> IndexedRows | RowFiles:
        """What a dataset looks a sample's row up in."""
        return IndexedRows(self.files) if self.choice.reading == "indexed" else self.files

    def batches(self, batch_size: int, rank: int = 0, world_size: int = 1) -> EpochBatches:
        """The batches of one rank."""
        if self.choice.reading == "streaming":
            stream = RowStream(
                self.files, self.names, self.mixture, self.choice.shuffle_buffer, self.choice.limit, self.seed,
                self.holdout.removed_locations if self.holdout else frozenset(), self.parser,
            )  # fmt: skip
            return StreamedBatches(stream, batch_size, rank, world_size, self.choice.one_subset_batches)
        rows, mixture = len(self.rows), None
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
                f"{self.files}: {samples} rows an epoch are too few for one batch on each of {world_size} ranks",
                code="too-few-training-rows",
                path=str(self.files),
                rows=samples,
                ranks=world_size,
            )
        return batches

    def _counts(self) -> dict[str, int]:
        """Training rows of each subset, without those that are held out."""
        codes, names = self.subsets.codes, self.subsets.names
        removed = self.holdout.removed if self.holdout else np.zeros(0, np.int64)
        left = np.bincount(codes, minlength=len(names)) - np.bincount(codes[removed], minlength=len(names))
        return dict(zip(names, left.tolist(), strict=True))

    @cached_property
    def _row_mixture(self) -> RowMixture:
        removed = self.holdout.removed if self.holdout else None
        mixture = RowMixture(self.subsets, self.mixture, self.choice.limit, removed)
        if not any(mixture.sizes):
            asked = "data.subsets, data.repeat and data.weights"
            there_are = ", ".join(f"{name} ({count})" for name, count in self._counts().items())
            raise DataError(
                f"{self.files}: {asked} leave no training row; there are: {there_are}",
                code="mixture-without-rows",
                path=str(self.files),
                rows=self._counts(),
            )
        counts = zip(self.subsets.names, mixture.sizes, strict=True)
        log.info("training: rows an epoch: %s", ", ".join(f"{name} {size}" for name, size in counts))
        for name in self.choice.repeat or {}:
            if name not in self.subsets.names:
                log.warning("data.repeat names %s, but no training row is of it", name)
        unknown = self._counts().get(UNKNOWN)
        if unknown and self.mixture.factor(UNKNOWN) > 0:
            log.warning("%s: %d rows do not tell their subset and are kept", self.files, unknown)
        return mixture

    def _check_names(self, settings: Mapping[str, str], known: Sequence[str]) -> None:
        known = (*known, UNKNOWN)
        if all(name in known for name in settings):
            return
        if self.choice.reading == "indexed":
            seen = self.subsets.names
        else:
            contents = (row.content for stretch in self.files.stretches() for row in self.files.read(stretch))
            seen = {self.names(*self.parser.parse_subset(content)) for content in islice(contents, _NAMES_FROM)}
        for name, setting in settings.items():
            check_names(setting, [name], list(dict.fromkeys((*known, *seen))))

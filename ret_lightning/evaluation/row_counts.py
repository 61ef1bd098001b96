"""Count unreadable images and truncated texts among the rows of an evaluation."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from ret_lightning.data.bad_rows import Tally
from ret_lightning.data.batch import EvaluationBatch
from ret_lightning.data.rank_tallies import reduce_tally
from ret_lightning.data.types import PLURAL, SIDES, EvaluationSubset, Side
from ret_lightning.distributed.collectives import gather_sizes, rank
from ret_lightning.inputs.truncated_texts import TextCount

log = logging.getLogger(__name__)


class RowCounts:
    """Counts the rows of one rank; `check` sums them over all ranks and reports each file and each split once."""

    def __init__(self) -> None:
        self._images: dict[tuple[str, Side], Tally] = {}
        self._earlier_rows: dict[tuple[str, Side], int] = {}
        self._texts = TextCount()
        self._reported: set[str] = set()

    def start(self) -> None:
        """Reset the counts for another evaluation."""
        self._images, self._earlier_rows, self._texts = {}, {}, TextCount()

    def add(self, batch: EvaluationBatch) -> None:
        """Count a batch, unless its rows belong to another rank.

        Args:
            batch: the batch.
        """
        if batch.is_repeated:
            return
        tally = self._images.setdefault((batch.subset, batch.side), Tally())
        tally.rows += len(batch)
        for row in batch.bad_images:
            tally.add(row)
        self._texts.add(batch.texts)

    def add_earlier_rows(self, subset: str, side: Side, rows: int, bad: Tally) -> None:
        """Count the rows that an earlier, interrupted evaluation has encoded.

        Args:
            subset: name of the subset.
            side: side of the rows.
            rows: number of rows, over all ranks.
            bad: rows of this rank whose images could not be read then and still cannot be read.
        """
        self._earlier_rows[subset, side] = rows
        self._images.setdefault((subset, side), Tally()).update(bad)

    def check(
        self,
        subsets: Sequence[EvaluationSubset],
        max_bad_fraction: float,
        device: torch.device,
        is_sanity_check: bool = False,
    ) -> None:
        """Warn about unreadable images and truncated texts; all ranks call this together.

        Args:
            subsets: the encoded subsets, of one split.
            max_bad_fraction: maximum fraction of the rows of a file whose image cannot be read.
            device: the device of the collectives.
            is_sanity_check: whether this is a sanity check, which does not report texts.

        Raises:
            DataError: on all ranks, if a file exceeds the fraction.
        """
        for subset in subsets:
            for side in SIDES:
                tally = Tally()
                tally.update(reduce_tally(self._images.get((subset.name, side), Tally()), device))
                tally.rows += self._earlier_rows.get((subset.name, side), 0)  # the fraction refers to the whole file
                name = f"{subset.name}: the images of the {subset.split} {PLURAL[side]}"
                if not tally.bad or name in self._reported:
                    continue
                self._reported.add(name)
                tally.check(max_bad_fraction, name)
                log.warning(
                    "%s: %s cannot be read, these rows are encoded without their image; first: %s",
                    name, tally, next(iter(tally.first.values()))[0].message,
                )  # fmt: skip
        what = f"{subsets[0].split} texts" if subsets else ""
        if not is_sanity_check and what not in self._reported:
            self._reported.add(what)
            warn_about_truncated_texts(self._texts, what, device)


def warn_about_truncated_texts(count: TextCount, what: str, device: torch.device) -> None:
    """Log one line on rank 0 if any rank truncated texts; all ranks call this together.

    Args:
        count: the count of this rank.
        what: what the texts are, for the log.
        device: the device of the collectives.
    """
    texts, truncated = torch.tensor(gather_sizes((count.texts, count.truncated), device)).sum(dim=0).tolist()
    if rank() == 0:
        TextCount(texts, truncated, count.limit).warn(log, what)

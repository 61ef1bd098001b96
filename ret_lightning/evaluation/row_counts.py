"""What is counted of the rows that an evaluation encodes: images that cannot be read, and texts that the tokenizer cuts."""

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
    """Counts of one rank; `check` adds up those of all ranks. It reports each file and each split once."""

    def __init__(self) -> None:
        self._images: dict[tuple[str, Side], Tally] = {}
        self._before: dict[tuple[str, Side], int] = {}
        self._texts = TextCount()
        self._reported: set[str] = set()

    def start(self) -> None:
        """Start another evaluation."""
        self._images, self._before, self._texts = {}, {}, TextCount()

    def add(self, batch: EvaluationBatch) -> None:
        """Count a batch, unless its rows are another rank's."""
        if batch.is_repeated:
            return
        tally = self._images.setdefault((batch.subset, batch.side), Tally())
        tally.rows += len(batch)
        for row in batch.bad_images:
            tally.add(row)
        self._texts.add(batch.texts)

    def add_before(self, subset: str, side: Side, rows: int, bad: Tally) -> None:
        """Count what an evaluation that continues finds encoded already.

        Args:
            subset: name.
            side: of the rows.
            rows: how many, over all ranks.
            bad: those of this rank whose images could not be read then and cannot be read now.
        """
        self._before[subset, side] = rows
        self._images.setdefault((subset, side), Tally()).update(bad)

    def check(
        self, subsets: Sequence[EvaluationSubset], max_bad_fraction: float, device: torch.device, tried: bool = False
    ) -> None:
        """Warn of images that cannot be read and of texts that are cut; all ranks call this together.

        Args:
            subsets: that were encoded, of one split.
            max_bad_fraction: largest share of the rows of a file that may lack their image.
            device: that the collectives run on.
            tried: whether it is a sanity check, which reports nothing about texts.

        Raises:
            DataError: on all ranks, if a file has more.
        """
        for subset in subsets:
            for side in SIDES:
                tally = Tally()
                tally.update(reduce_tally(self._images.get((subset.name, side), Tally()), device))
                tally.rows += self._before.get((subset.name, side), 0)  # the share is of the whole file
                name = f"{subset.name}: the images of the {subset.split} {PLURAL[side]}"
                if not tally.bad or name in self._reported:
                    continue
                self._reported.add(name)
                tally.check(max_bad_fraction, name)
                log.warning(
                    "%s: %s cannot be read, and these rows go without; the first: %s",
                    name, tally, next(iter(tally.first.values()))[0].message,
                )  # fmt: skip
        what = f"{subsets[0].split} texts" if subsets else ""
        if not tried and what not in self._reported:
            self._reported.add(what)
            warn_of_cut_texts(self._texts, what, device)


def warn_of_cut_texts(count: TextCount, what: str, device: torch.device) -> None:
    """Log one line on the first rank if any rank's texts are cut; all ranks call this together."""
    sizes = torch.tensor(gather_sizes((count.texts, count.truncated), device)).sum(dim=0).tolist()
    if rank() == 0:
        TextCount(*sizes, count.limit).warn(log, what)

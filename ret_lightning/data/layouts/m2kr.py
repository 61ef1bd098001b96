"""ReT-M2KR on disk: which file holds what, which subsets there are, and a subset ready to be evaluated."""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from ret_lightning.data.bad_rows import BadRow, OnBadRow, Tally, parsed_rows
from ret_lightning.data.images.sources import ImageSource, image_source
from ret_lightning.data.readers.row_files import SUFFIXES, RowFiles, suffix_of
from ret_lightning.data.rows import Passage, Place, parse_passage, parse_query
from ret_lightning.data.types import EvaluationSubset, Split
from ret_lightning.errors import DataError

log = logging.getLogger(__name__)

# The eight test subsets of the paper, in its order.
M2KR_SUBSETS = ("wit", "iglue", "kvqa", "oven", "llava", "infoseek", "evqa", "okvqa")
# Subsets of M2KR that only have training rows.
M2KR_TRAINING_SUBSETS = ("msmarco", "cc3m")


@dataclass(frozen=True)
class M2KRFiles:
    """Where the files stand, relative to `root`; the defaults are ReT-M2KR's. Several folders may be one.

    Attributes:
        root: the folder that holds everything.
        train: folder of the training file.
        val: folder of `<subset>_val.jsonl`; ReT-M2KR has none.
        test: folder of `<subset>_test.jsonl`, or `<subset>_test_m2kr.jsonl`.
        passages: folder of `<subset>_passages_test.jsonl`.
        images: where images are, see `image_source`.
        train_file: name of the training file, a pattern with `*`, or a list of them.

    Each `.jsonl` may be `.jsonl.gz`, `.jsonl.zst` or `.parquet` instead; of several the first in this order is taken.
    """

    root: Path
    train: str = "jsonl/m2kr/train"
    val: str = "jsonl/m2kr/val"
    test: str = "jsonl/m2kr/test"
    passages: str = "jsonl/m2kr/passages"
    images: str | Sequence[str] = "images/m2kr/images"
    train_file: str | Sequence[str] = "m2kr_up_train.jsonl"

    def training_files(self) -> RowFiles:
        """The files of all training rows."""
        folder = self.root / self.train
        name = self.train_file
        if isinstance(name, str) and name.endswith(".jsonl") and not glob.has_magic(name):
            return self._rows(folder, name.removesuffix(".jsonl"))
        if not self.root.is_dir():
            raise self._no_root()
        return RowFiles.named(folder, name, "data.train_file")

    def query_files(self, subset: str, split: Split) -> RowFiles:
        """The queries of a subset."""
        if split == "val":
            return self._rows(self.root / self.val, f"{subset}_val")
        return self._rows(self.root / self.test, f"{subset}_test", f"{subset}_test_m2kr")  # evqa carries the longer one

    def passage_files(self, subset: str) -> RowFiles:
        """The pool of a subset."""
        return self._rows(self.root / self.passages, f"{subset}_passages_test")

    def image_source(self) -> ImageSource:
        """Where image paths lead; the first call indexes archives."""
        return image_source(self.images, self.root)

    def subsets(self) -> list[str]:
        """The names of the subsets that have a test file; the paper's first and in its order, others by name."""
        pattern = re.compile(r"(.+)_test(_m2kr)?")
        found = set()
        for file in (self.root / self.test).glob("*"):
            suffix = suffix_of(file)
            match = pattern.fullmatch(file.name.removesuffix(suffix)) if suffix else None
            if match and not match[1].endswith("_passages"):
                found.add(match[1])
        return [*(s for s in M2KR_SUBSETS if s in found), *sorted(found.difference(M2KR_SUBSETS))]

    def pools(self) -> list[str]:
        """The names of the subsets that have a pool."""
        found = (
            file.name.removesuffix(suffix_of(file)) for file in (self.root / self.passages).glob("*") if suffix_of(file)
        )
        return sorted(name.removesuffix("_passages_test") for name in found if name.endswith("_passages_test"))

    def has_validation(self, subset: str) -> bool:
        """Whether the subset has validation queries of its own."""
        return any((self.root / self.val / f"{subset}_val{suffix}").is_file() for suffix in SUFFIXES)

    def _rows(self, folder: Path, *stems: str) -> RowFiles:
        """The first file that is there, of the names in order and of the suffixes in theirs."""
        if not self.root.is_dir():
            raise self._no_root()
        for path in (folder / f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES):
            if path.is_file():
                return RowFiles([path])
        first, *others = (f"{stem}{SUFFIXES[0]}" for stem in stems)
        others += (f"{stems[0]}{suffix}" for suffix in SUFFIXES[1:])
        raise DataError(
            f"{folder / first}: no such file (nor {', '.join(others)}); data.root={self.root} must hold the "
            "layout of ReT-M2KR, or the folder settings of data must say where things are",
            code="missing-corpus-file",
            path=str(folder / first),
            root=str(self.root),
        )

    def _no_root(self) -> DataError:
        return DataError(
            f"data.root={self.root}: no such folder; name the folder that holds the corpus",
            code="missing-data-root",
            path=str(self.root),
        )


def load_subset(
    files: M2KRFiles,
    name: str,
    split: Split,
    queries_from: Split | None = None,
    instruction: str | None = None,
    limit: int | None = None,
    on_bad_row: OnBadRow = "raise",
    max_bad_fraction: float = 0.0,
) -> EvaluationSubset:
    """Reads and checks the queries and the pool of a subset.

    Args:
        files: where things are.
        name: of the subset.
        split: what the result is called.
        queries_from: whose queries to take; None: those of `split`.
        instruction: of all queries, in place of their own; None: their own.
        limit: most queries that are taken, the first good ones; None: all. The pool is always whole.
        on_bad_row: `raise`, or `skip`: bad rows, and passages whose id stands in the pool already, are left out, and a
            warning a file tells how many and where the first is.
        max_bad_fraction: most that are left out of one file, as a share of its rows.

    Raises:
        DataError: naming file, line and field of the first mistake; or if more than `max_bad_fraction` are skipped.
    """
    query_files, pool_files = files.query_files(name, queries_from or split), files.passage_files(name)
    tallies = [Tally(), Tally()] if on_bad_row == "skip" else [None, None]
    queries = list(islice(parsed_rows(query_files, parse_query, tallies[0]), limit))
    if instruction is not None:
        queries = [query.instructed(instruction) for query in queries]
    pool = _unique(parsed_rows(pool_files, parse_passage, tallies[1]), name, tallies[1])
    for tally, path in zip(tallies, (query_files, pool_files), strict=True):
        if tally and tally.bad:
            tally.check(max_bad_fraction, str(path))
            log.warning("%s: %s are left out; the first: %s", path, tally, next(iter(tally.first.values()))[0].message)
    if not queries or not pool:
        empty = query_files if not queries else pool_files
        raise DataError(
            f"{empty}: no rows that can be used; {name} needs at least one query and one passage",
            code="no-evaluation-rows",
            path=str(empty),
            subset=name,
        )
    return EvaluationSubset(name, split, queries, pool, source=queries_from or split)


def twice(passage: Passage, first: Place, subset: str) -> DataError:
    """The error of a passage whose id stands in the pool already, at `first`."""
    return DataError(
        f"{passage.place}: passage_id {passage.passage_id!r} is in the pool of {subset} twice, first in line {first.line}; "
        "remove one of the two",
        "duplicate_id",
        code="duplicate-passage-id",
        passage_id=passage.passage_id,
        subset=subset,
        first_line=first.line,
    )


def _unique(passages: Iterable[Passage], subset: str, tally: Tally | None) -> list[Passage]:
    """The passages, of equal ids the first."""
    firsts: dict[str, Passage] = {}
    for passage in passages:
        first = firsts.setdefault(passage.passage_id, passage)
        if first is not passage:
            error = twice(passage, first.place, subset)
            if tally is None:
                raise error
            tally.add(BadRow.of(error, passage.place))
    return list(firsts.values())


def sampled_pool(subset: EvaluationSubset, size: int, seed: int) -> EvaluationSubset:
    """The subset with a smaller pool: all positives of its queries, and others by chance up to `size`, in their order.

    Recall in a smaller pool is higher than in the whole one: for watching a run, not for reporting.

    Args:
        subset: with its whole pool.
        size: passages that stay; more, where the queries have more positives.
        seed: of the choice, which is the same every time.
    """
    wanted = {passage_id for query in subset.queries for passage_id in query.passage_ids}
    positive = np.array([passage.passage_id in wanted for passage in subset.pool])
    others = np.flatnonzero(~positive)
    count = min(len(others), max(0, size - int(positive.sum())))
    kept = positive.copy()
    kept[np.random.default_rng((seed, len(others))).choice(others, count, replace=False)] = True
    return replace(subset, pool=[subset.pool[row] for row in np.flatnonzero(kept)])

"""ReT-M2KR on disk: which file holds what, which subsets there are, and a subset ready to be evaluated."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ret_lightning.data.images import ImageSource, image_source
from ret_lightning.data.json_lines import JsonLines
from ret_lightning.data.rows import Passage, Query, parse_passage, parse_query
from ret_lightning.errors import DataError

Split = Literal["val", "test"]

# The eight test subsets of the paper, in its order.
M2KR_SUBSETS = ("wit", "iglue", "kvqa", "oven", "llava", "infoseek", "evqa", "okvqa")


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
        train_file: name of the training file.
    """

    root: Path
    train: str = "jsonl/m2kr/train"
    val: str = "jsonl/m2kr/val"
    test: str = "jsonl/m2kr/test"
    passages: str = "jsonl/m2kr/passages"
    images: str | Sequence[str] = "images/m2kr/images"
    train_file: str = "m2kr_up_train.jsonl"

    def training_file(self) -> Path:
        """The file of all training rows."""
        return self._existing(self.root / self.train / self.train_file)

    def query_file(self, subset: str, split: Split) -> Path:
        """The queries of a subset."""
        if split == "val":
            return self._existing(self.root / self.val / f"{subset}_val.jsonl")
        folder = self.root / self.test
        names = [f"{subset}_test.jsonl", f"{subset}_test_m2kr.jsonl"]  # evqa carries the longer one
        return self._existing(*(folder / name for name in names))

    def passage_file(self, subset: str) -> Path:
        """The pool of a subset."""
        return self._existing(self.root / self.passages / f"{subset}_passages_test.jsonl")

    def image_source(self) -> ImageSource:
        """Where image paths lead; the first call indexes archives."""
        return image_source(self.images, self.root)

    def subsets(self) -> list[str]:
        """The names of the subsets that have a test file; the paper's first and in its order, others by name."""
        pattern = re.compile(r"(.+)_test(_m2kr)?\.jsonl")
        found = set()
        for file in (self.root / self.test).glob("*.jsonl"):
            match = pattern.fullmatch(file.name)
            if match and not match[1].endswith("_passages"):
                found.add(match[1])
        return [*(s for s in M2KR_SUBSETS if s in found), *sorted(found.difference(M2KR_SUBSETS))]

    def has_validation(self, subset: str) -> bool:
        """Whether the subset has validation queries of its own."""
        return (self.root / self.val / f"{subset}_val.jsonl").is_file()

    def _existing(self, *candidates: Path) -> Path:
        if not self.root.is_dir():
            raise DataError(f"data.root={self.root}: no such folder")
        for path in candidates:
            if path.is_file():
                return path
        others = f" (nor {', '.join(path.name for path in candidates[1:])})" if len(candidates) > 1 else ""
        raise DataError(
            f"{candidates[0]}: no such file{others}; data.root={self.root} must hold the layout of ReT-M2KR, "
            "or the folder settings of data must say where things are"
        )


@dataclass(frozen=True)
class EvaluationSubset:
    """One subset of one split: what is asked and the pool that is searched.

    Attributes:
        name: of the subset.
        split: `val` or `test`.
        queries: in the order of the file.
        pool: the passages, in the order of the file, ids unique.
        unreachable: positions of the queries none of whose positives is in the pool; they count as misses.
    """

    name: str
    split: Split
    queries: list[Query]
    pool: list[Passage]
    unreachable: list[int]


def load_subset(files: M2KRFiles, name: str, split: Split, queries_from: Split | None = None) -> EvaluationSubset:
    """Reads and checks the queries and the pool of a subset.

    Args:
        files: where things are.
        name: of the subset.
        split: what the result is called.
        queries_from: whose queries to take; None: those of `split`.

    Raises:
        DataError: naming file, line and field of the first mistake.
    """
    queries = [parse_query(line, place) for line, place in JsonLines(files.query_file(name, queries_from or split))]
    pool = [parse_passage(line, place) for line, place in JsonLines(files.passage_file(name))]
    lines: dict[str, Passage] = {}
    for passage in pool:
        first = lines.setdefault(passage.passage_id, passage)
        if first is not passage:
            raise DataError(
                f"{passage.place}: passage_id {passage.passage_id!r} stands in the pool of {name} twice, "
                f"first in line {first.place.line}"
            )
    unreachable = [i for i, query in enumerate(queries) if not any(p in lines for p in query.passage_ids)]
    return EvaluationSubset(name, split, queries, pool, unreachable)


def row_subset(query: Query, known: Sequence[str]) -> str | None:
    """Which subset a training row belongs to: by its `subset` field, else by the beginning of its data_id.

    Args:
        query: the row.
        known: the names to look for, in any case.

    Returns:
        One of `known`, or None where the row does not tell.
    """
    by_lower = {name.lower(): name for name in known}
    if query.subset is not None:
        return by_lower.get(query.subset.lower(), query.subset)
    data_id = query.data_id.lower()
    for lower in sorted(by_lower, key=len, reverse=True):
        if data_id.startswith(lower) and not data_id[len(lower) : len(lower) + 1].isalnum():
            return by_lower[lower]
    return None

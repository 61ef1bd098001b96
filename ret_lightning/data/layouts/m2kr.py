"""The layout of ReT-M2KR on disk, its subsets, and the results published on it."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ret_lightning.data.layouts.base import Layout, PublishedResults
from ret_lightning.data.readers.row_files import SUFFIXES, RowFiles, suffix_of
from ret_lightning.data.types import Split
from ret_lightning.errors import DataError

# The eight test subsets of the paper, in its order.
M2KR_SUBSETS = ("wit", "iglue", "kvqa", "oven", "llava", "infoseek", "evqa", "okvqa")
# Subsets of M2KR that have training rows only.
M2KR_TRAINING_SUBSETS = ("msmarco", "cc3m")


# K of recall@K of each subset in the paper (CVPR 2025, arXiv 2503.01980); the last three also have pseudo recall.
_RECALL_AT = {"wit": 10, "iglue": 1, "kvqa": 5, "oven": 5, "llava": 1, "infoseek": 5, "evqa": 5, "okvqa": 5}
_WITH_ANSWERS = ("infoseek", "evqa", "okvqa")

M2KR_PUBLISHED = PublishedResults(
    "ReT-M2KR",
    tuple(
        (subset, metric)
        for subset, k in _RECALL_AT.items()
        for metric in (f"recall@{k}", *(["pseudo_recall@5"] if subset in _WITH_ANSWERS else []))
    ),
    {
        "ReT CLIP ViT-L/14": (0.734, 0.818, 0.635, 0.820, 0.799, 0.470, 0.605, 0.445, 0.579, 0.202, 0.662),
        "ReT OpenCLIP ViT-H/14": (0.714, 0.800, 0.593, 0.830, 0.798, 0.473, 0.607, 0.448, 0.578, 0.182, 0.634),
        "ReT OpenCLIP ViT-G/14": (0.751, 0.822, 0.606, 0.840, 0.792, 0.520, 0.625, 0.486, 0.602, 0.190, 0.638),
        "PreFLMR ViT-L (text-only passages)": (
            0.605, 0.699, 0.440, 0.608, 0.729, 0.374, 0.578, 0.609, 0.708, 0.314, 0.690,
        ),
    },
)  # fmt: skip


@dataclass
class M2KRLayout(Layout):
    """The layout of ReT-M2KR.

    All folders are relative to `root`, and several of them may be the same folder. Each `.jsonl` file may be `.jsonl.gz`,
    `.jsonl.zst` or `.parquet` instead; if several exist, the first in this order is used.

    Attributes:
        root: folder of the corpus.
        train: folder of the training files.
        val: folder of `<subset>_val.jsonl`; ReT-M2KR has no such files.
        test: folder of `<subset>_test.jsonl` or `<subset>_test_m2kr.jsonl`.
        passages: folder of `<subset>_passages_test.jsonl`.
        images: folders or archives of the images, as in `image_source`.
        train_file: name of the training file, a pattern with `*`, or a list of names and patterns.
    """

    root: Path
    train: str = "jsonl/m2kr/train"
    val: str = "jsonl/m2kr/val"
    test: str = "jsonl/m2kr/test"
    passages: str = "jsonl/m2kr/passages"
    images: str | Sequence[str] = "images/m2kr/images"
    train_file: str | Sequence[str] = "m2kr_up_train.jsonl"

    evaluated_subsets = M2KR_SUBSETS
    training_subsets = M2KR_TRAINING_SUBSETS
    published = M2KR_PUBLISHED

    def training_files(self) -> RowFiles:
        """Return the files of all training rows.

        Raises:
            DataError: if a file is missing.
        """
        folder = self.root / self.train
        name = self.train_file
        if isinstance(name, str) and name.endswith(".jsonl") and not glob.has_magic(name):
            return self._rows(folder, name.removesuffix(".jsonl"))
        if not self.root.is_dir():
            raise self._no_root()
        return RowFiles.named(folder, name, "data.train_file")

    def query_files(self, subset: str, split: Split) -> RowFiles:
        """Return the file of the queries of a subset.

        Args:
            subset: name of the subset.
            split: `val` or `test`.

        Raises:
            DataError: if it is missing.
        """
        if split == "val":
            return self._rows(self.root / self.val, f"{subset}_val")
        return self._rows(self.root / self.test, f"{subset}_test", f"{subset}_test_m2kr")  # evqa has the longer name

    def passage_files(self, subset: str) -> RowFiles:
        """Return the file of the candidate pool of a subset.

        Args:
            subset: name of the subset.

        Raises:
            DataError: if it is missing.
        """
        return self._rows(self.root / self.passages, f"{subset}_passages_test")

    def subsets(self) -> list[str]:
        """Return the names of the subsets that have a test file: those of the paper in its order, then others sorted."""
        pattern = re.compile(r"(.+)_test(_m2kr)?")
        found = set()
        for file in (self.root / self.test).glob("*"):
            suffix = suffix_of(file)
            match = pattern.fullmatch(file.name.removesuffix(suffix)) if suffix else None
            if match and not match[1].endswith("_passages"):
                found.add(match[1])
        return [*(s for s in M2KR_SUBSETS if s in found), *sorted(found.difference(M2KR_SUBSETS))]

    def pools(self) -> list[str]:
        """Return the sorted names of the subsets that have a candidate pool."""
        found = (
            file.name.removesuffix(suffix_of(file)) for file in (self.root / self.passages).glob("*") if suffix_of(file)
        )
        return sorted(name.removesuffix("_passages_test") for name in found if name.endswith("_passages_test"))

    def has_validation(self, subset: str) -> bool:
        """Return whether the subset has its own validation queries."""
        return any((self.root / self.val / f"{subset}_val{suffix}").is_file() for suffix in SUFFIXES)

    def _rows(self, folder: Path, *stems: str) -> RowFiles:
        """Return the first file that exists, by the order of the stems, then of the suffixes."""
        if not self.root.is_dir():
            raise self._no_root()
        for path in (folder / f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES):
            if path.is_file():
                return RowFiles([path])
        first, *others = (f"{stem}{SUFFIXES[0]}" for stem in stems)
        others += (f"{stems[0]}{suffix}" for suffix in SUFFIXES[1:])
        raise DataError(
            f"{folder / first}: no such file, nor {', '.join(others)}; data.root={self.root} is expected to have the layout of "
            "ReT-M2KR; for other folders, set data.train_folder, data.val_folder, data.test_folder or data.passages_folder",
            code="missing-corpus-file",
            path=str(folder / first),
            root=str(self.root),
        )

    def _no_root(self) -> DataError:
        return DataError(
            f"data.root={self.root}: no such folder; set data.root to the folder of the corpus",
            code="missing-data-root",
            path=str(self.root),
        )

"""The Lightning data module of ReT-M2KR, or of any folder in its layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ret_lightning.data.datamodule import RetrievalDataModule
from ret_lightning.data.layouts.m2kr import M2KRLayout
from ret_lightning.inputs import ImageTransform, Tokenizer


class M2KRDataModule(RetrievalDataModule):
    """Training pairs, and queries and pools of the evaluation subsets, from a folder in the ReT-M2KR layout.

    Args:
        root: the folder that holds `jsonl` and `images`.
        tokenizer: the backbone's.
        image_transform: the backbone's.
        train_folder: where the training file is, relative to `root`. Older copies keep all JSON Lines in one folder.
        val_folder: of validation queries, relative to `root`.
        test_folder: of test queries, relative to `root`.
        passages_folder: of candidate pools, relative to `root`.
        image_folder: what image paths are relative to: a folder, a tar or zip archive, a pattern that archives match, or a
            list of these two; see `image_source`.
        train_file: name of the training file, a pattern with `*`, or a list of them.
        options: of `RetrievalDataModule`.
    """

    def __init__(
        self,
        root: str | Path,
        tokenizer: Tokenizer | None,
        image_transform: ImageTransform | None,
        train_folder: str = "jsonl/m2kr/train",
        val_folder: str = "jsonl/m2kr/val",
        test_folder: str = "jsonl/m2kr/test",
        passages_folder: str = "jsonl/m2kr/passages",
        image_folder: str | Sequence[str] = "images/m2kr/images",
        train_file: str | Sequence[str] = "m2kr_up_train.jsonl",
        **options: Any,
    ) -> None:
        layout = M2KRLayout(
            Path(root), train_folder, val_folder, test_folder, passages_folder, image_folder, train_file
        )
        super().__init__(layout, tokenizer, image_transform, **options)

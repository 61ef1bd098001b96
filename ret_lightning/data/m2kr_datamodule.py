"""The Lightning data module of ReT-M2KR, or of any corpus in its layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ret_lightning.data.datamodule import RetrievalDataModule
from ret_lightning.data.layouts.m2kr import M2KRLayout
from ret_lightning.inputs import ImageTransform, Tokenizer


class M2KRDataModule(RetrievalDataModule):
    """A Lightning data module of a corpus in the ReT-M2KR layout.

    Args:
        root: folder of the corpus, with the folders `jsonl` and `images`.
        tokenizer: tokenizer of the backbone; None if no loader is created.
        image_transform: image transform of the backbone; None if no loader is created.
        train_folder: folder of the training files, relative to `root`. The folders may be the same, as in older copies.
        val_folder: folder of the validation queries, relative to `root`.
        test_folder: folder of the test queries, relative to `root`.
        passages_folder: folder of the candidate pools, relative to `root`.
        image_folder: what image paths are relative to, itself relative to `root`: a folder, a tar or zip archive, a pattern
            that matches archives, or a list of archives and patterns; see `image_source`.
        train_file: name of the training file, a pattern with `*`, or a list of names and patterns.
        options: further arguments of `RetrievalDataModule`.
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

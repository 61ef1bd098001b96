"""The Lightning data module of the glyphs corpus, which is made first and then read like ReT-M2KR."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ret_lightning.data.datamodule import RetrievalDataModule
from ret_lightning.data.glyphs.corpus import prepare_glyphs
from ret_lightning.data.layouts.m2kr import M2KRLayout
from ret_lightning.data.validation_plan import Validation
from ret_lightning.inputs import ImageTransform, Tokenizer


@dataclass
class GlyphsLayout(M2KRLayout):
    """The embedded corpus, made once into a cache folder; `root` is known when it is there.

    Attributes:
        cache_dir: where the corpus is kept; None: `ret_lightning` in the user's cache folder.
        image_size: side of the drawn images, pixels.
        seed: of the corpus.
        workers: processes that draw; None: one per core.
    """

    root: Path = Path()
    cache_dir: str | None = None
    image_size: int = 40
    seed: int = 0
    workers: int | None = None

    is_generated = True

    def prepare(self) -> None:
        """Make the corpus where it is not there, or not whole."""
        if self.root == Path():
            self.root = prepare_glyphs(self.cache_dir, image_size=self.image_size, seed=self.seed, workers=self.workers)


class GlyphsDataModule(RetrievalDataModule):
    """The embedded corpus: made once into a cache folder, then read like ReT-M2KR.

    Args:
        tokenizer: the backbone's.
        image_transform: the backbone's.
        cache_dir: where the corpus is kept; None: `ret_lightning` in the user's cache folder.
        corpus_image_size: side of the drawn images, pixels.
        corpus_seed: of the corpus, apart from `seed`, the order of its rows.
        generation_workers: processes that draw; None: one per core.
        validation: where the validation queries come from; the corpus has some of its own.
        shared_passage_ids: whether an id names the same passage in all subsets, as it does here.
        options: of `RetrievalDataModule`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        image_transform: ImageTransform | None,
        cache_dir: str | None = None,
        corpus_image_size: int = 40,
        corpus_seed: int = 0,
        generation_workers: int | None = None,
        validation: Validation = "val",
        shared_passage_ids: bool = True,
        **options: Any,
    ) -> None:
        layout = GlyphsLayout(
            cache_dir=cache_dir, image_size=corpus_image_size, seed=corpus_seed, workers=generation_workers
        )
        own = {"validation": validation, "shared_passage_ids": shared_passage_ids}
        super().__init__(layout, tokenizer, image_transform, **own, **options)

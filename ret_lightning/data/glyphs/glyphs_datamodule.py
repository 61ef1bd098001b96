"""The Lightning data module of the generated glyphs corpus."""

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
    """The layout of the glyphs corpus, which `prepare` generates in a cache folder.

    Attributes:
        root: folder of the corpus; set by `prepare`.
        cache_dir: cache folder; None: `ret_lightning` in the user's cache folder.
        image_size: side of the drawn images in pixels, from 16 to 512.
        seed: seed of the corpus.
        workers: number of processes that draw images; None: one per core.
    """

    root: Path = Path()
    cache_dir: str | None = None
    image_size: int = 40
    seed: int = 0
    workers: int | None = None

    is_generated = True

    def prepare(self) -> None:
        """Generate the corpus if it is missing or incomplete."""
        if self.root == Path():
            self.root = prepare_glyphs(self.cache_dir, image_size=self.image_size, seed=self.seed, workers=self.workers)


class GlyphsDataModule(RetrievalDataModule):
    """A Lightning data module of the glyphs corpus, which is generated once in a cache folder.

    Args:
        tokenizer: tokenizer of the backbone; None if no loader is created.
        image_transform: image transform of the backbone; None if no loader is created.
        cache_dir: cache folder; None: `ret_lightning` in the user's cache folder.
        corpus_image_size: side of the drawn images in pixels, from 16 to 512.
        corpus_seed: seed of the generated corpus; `seed` is that of the order of its rows.
        generation_workers: number of processes that draw images; None: one per core.
        validation: source of the validation queries, as in `RetrievalDataModule`; the corpus has validation files.
        shared_passage_ids: whether equal ids of two subsets are the same passage, which is the case in this corpus.
        options: further arguments of `RetrievalDataModule`.
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
        own: dict[str, Any] = {"validation": validation, "shared_passage_ids": shared_passage_ids}
        super().__init__(layout, tokenizer, image_transform, **own, **options)

"""The Lightning data module of the glyphs corpus, which is made first and then read like ReT-M2KR."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from ret_lightning.data.datamodule import M2KRDataModule
from ret_lightning.data.glyphs.corpus import prepare_glyphs
from ret_lightning.data.layouts.m2kr import M2KRFiles
from ret_lightning.data.required_files import Needed
from ret_lightning.data.sampling.training_set import Reading
from ret_lightning.inputs import Augmentation, ImageTransform, Tokenizer


class GlyphsDataModule(M2KRDataModule):
    """The embedded corpus: made once into a cache folder, then read like ReT-M2KR.

    Args:
        tokenizer: the backbone's.
        image_transform: the backbone's.
        cache_dir: where the corpus is kept; None: `ret_lightning` in the user's cache folder.
        corpus_image_size: side of the drawn images, pixels.
        corpus_seed: of the corpus, apart from `seed`, the order of its rows.
        generation_workers: processes that draw; None: one a core.
        subsets: as in `M2KRDataModule`, and so are the others.
        repeat: as there.
        weights: as there.
        limit: as there.
        one_subset_batches: as there.
        instructions: as there.
        reading: as there.
        shuffle_buffer: as there.
        batch_size: as there.
        eval_batch_size: as there.
        num_workers: as there.
        augmentation: as there.
        validation_pool: as there.
        seed: as there.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        image_transform: ImageTransform,
        cache_dir: str | None = None,
        corpus_image_size: int = 40,
        corpus_seed: int = 0,
        generation_workers: int | None = None,
        subsets: Sequence[str] | None = None,
        repeat: Mapping[str, float] | None = None,
        weights: Mapping[str, float] | None = None,
        limit: int | None = None,
        one_subset_batches: bool = False,
        instructions: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
        reading: Reading = "indexed",
        shuffle_buffer: int = 10_000,
        batch_size: int = 64,
        eval_batch_size: int = 256,
        num_workers: int = 0,
        augmentation: Augmentation | None = None,
        validation_pool: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            root="",
            tokenizer=tokenizer,
            image_transform=image_transform,
            subsets=subsets,
            repeat=repeat,
            weights=weights,
            limit=limit,
            one_subset_batches=one_subset_batches,
            instructions=instructions,
            reading=reading,
            shuffle_buffer=shuffle_buffer,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            augmentation=augmentation,
            shared_passage_ids=True,
            validation="val",
            validation_pool=validation_pool,
            seed=seed,
        )
        self._corpus = {
            "cache_dir": cache_dir,
            "image_size": corpus_image_size,
            "seed": corpus_seed,
            "workers": generation_workers,
        }

    def check_files(self, needed: Collection[Needed]) -> list[str] | None:
        """Nothing to find: the corpus is made when it is needed."""
        return None

    def prepare_data(self) -> None:
        """Makes the corpus where it is not there, or not whole."""
        self._open_corpus()
        super().prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """As in `M2KRDataModule`."""
        if self.files.root == Path():
            self._open_corpus()
        super().setup(stage)

    def _open_corpus(self) -> None:
        self.files = M2KRFiles(prepare_glyphs(**self._corpus))

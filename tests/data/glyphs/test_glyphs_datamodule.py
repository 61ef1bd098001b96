"""Tests of the data module of the glyphs corpus, compared with M2KRDataModule on the same folder."""

from __future__ import annotations

from pathlib import Path

import torch

from ret_lightning import M2KRDataModule
from ret_lightning.data.glyphs.glyphs_datamodule import GlyphsDataModule
from ret_lightning.inputs import ClipTokenizer, ImageTransform


def test_batches_equal_those_of_m2kr_datamodule(glyphs_root: Path) -> None:
    tokenizer, transform = ClipTokenizer(), ImageTransform(40)
    own = GlyphsDataModule(tokenizer, transform, batch_size=16, seed=5)
    own.prepare_data()
    own.setup("fit")
    other = M2KRDataModule(glyphs_root, tokenizer, transform, batch_size=16, seed=5, shared_passage_ids=True)
    other.setup("fit")
    assert own.layout.root == glyphs_root
    assert len(own.evaluation_subsets("val")) >= 6
    for a, b in zip(own.train_dataloader(), other.train_dataloader(), strict=True):
        assert torch.equal(a.queries.pixel_values, b.queries.pixel_values)
        assert torch.equal(a.labels, b.labels)
        break


def test_glyphs_validate_on_val_files(glyphs_root: Path) -> None:
    data = GlyphsDataModule(ClipTokenizer(), ImageTransform(40), batch_size=16)
    data.prepare_data()
    data.setup("fit")
    assert set(data.validated_on.values()) == {"val"}
    assert data.validation_plan().holdout is None

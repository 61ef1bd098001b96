"""A module and data that train in a second."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from ret_lightning import M2KRDataModule, RetModule
from ret_lightning.inputs import ClipTokenizer, ImageTransform
from ret_lightning.losses import ContrastiveLoss
from ret_lightning.models import LSTMGate, build_retriever
from ret_lightning.models.backbones.clip_transformers import clip_backbone
from ret_lightning.training.schedule import WarmupCosine
from tests.support.m2kr_folder import write_folder

TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**TEXT, "image_size": 16, "patch_size": 8}


def make_module(train_backbones: bool = True, **options) -> RetModule:
    torch.manual_seed(0)
    retriever = build_retriever(
        clip_backbone(text=TEXT, vision=VISION),
        gate=LSTMGate,
        num_tokens=4,
        hidden_size=32,
        num_heads=2,
        output_size=8,
        dropout=0.0,
        attention_dropout=0.0,
        train_text=train_backbones,
        train_vision=train_backbones,
    )
    optimizer = partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
    return RetModule(retriever, ContrastiveLoss(), optimizer, WarmupCosine(warmup_steps=2), **options)


def make_data(root: Path, **options) -> M2KRDataModule:
    return M2KRDataModule(
        root, ClipTokenizer(), ImageTransform(16), **{"batch_size": 8, "validation": "test", **options}
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "m2kr", training_rows=24)

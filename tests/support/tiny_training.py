"""A small module and small data, which train within a second."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from lightning import Trainer, seed_everything

from ret_lightning import M2KRDataModule, RetModule, RetrievalEvaluation
from ret_lightning.inputs import ClipTokenizer, ImageTransform
from ret_lightning.losses import ContrastiveLoss
from ret_lightning.models import LSTMGate, build_retriever
from ret_lightning.models.backbones.clip_transformers import clip_backbone
from ret_lightning.training.schedule import WarmupCosine

OPTIONS = {
    "accelerator": "cpu",
    "devices": 1,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,
}
TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**TEXT, "image_size": 16, "patch_size": 8}


def evaluate(root: Path, evaluation: RetrievalEvaluation, **options) -> tuple[Trainer, dict[str, float]]:
    module = make_module()
    trainer = Trainer(**OPTIONS, logger=False, callbacks=[evaluation, *options.pop("callbacks", [])], **options)
    (logged,) = [trainer.test(module, datamodule=make_data(root, eval_batch_size=5), verbose=False)[0]]
    return trainer, logged


def fit(root: Path, module: RetModule, **options) -> Trainer:
    seed_everything(1, verbose=False)
    trainer = Trainer(**{**OPTIONS, "logger": False, "limit_val_batches": 0, "max_epochs": 2, **options})
    trainer.fit(module, datamodule=make_data(root))
    return trainer


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


def checkpoint(module: RetModule, step: int = 1) -> dict:
    content = {"epoch": 0, "global_step": step, "state_dict": module.state_dict()}
    module.on_save_checkpoint(content)
    return content

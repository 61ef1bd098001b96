"""Earlier names of `_target_`s, so that configs, checkpoints and run folders of earlier versions can be loaded."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, ListConfig

from ret_lightning.config.nodes import child_keys

# Versions before 2026-11-30 named modules in `_target_`; configs now name packages.
_MOVED = {
    "ret_lightning.data.datamodule": ("ret_lightning.data", "M2KRDataModule GlyphsDataModule"),
    "ret_lightning.inputs.images": ("ret_lightning.inputs", "ImageTransform Augmentation"),
    "ret_lightning.inputs.tokenizer": ("ret_lightning.inputs", "ClipTokenizer"),
    "ret_lightning.losses.contrastive": ("ret_lightning.losses", "ContrastiveLoss"),
    "ret_lightning.models.clip_open": ("ret_lightning.models.backbones", "open_clip_backbone"),
    "ret_lightning.models.clip_transformers": ("ret_lightning.models.backbones", "clip_backbone"),
    "ret_lightning.models.gates": (
        "ret_lightning.models",
        "ConstantGate CoupledGate LSTMGate NoForgetGate NoGate NoInputGate ScalarGate",
    ),
    "ret_lightning.models.layers": ("ret_lightning.models", "Evenly Explicit FirstMiddleLast Last Published"),
    "ret_lightning.models.retriever": ("ret_lightning.models", "build_retriever"),
    "ret_lightning.retrieval.exact": ("ret_lightning.retrieval", "ExactIndex"),
    "ret_lightning.retrieval.faiss_index": ("ret_lightning.retrieval", "FaissIndex"),
    "ret_lightning.retrieval.muvera": ("ret_lightning.retrieval", "MuveraIndex"),
    "ret_lightning.training.bad_rows": ("ret_lightning.training.callbacks", "BadRowCount"),
    "ret_lightning.training.best_checkpoint": ("ret_lightning.training.checkpointing", "BestCheckpoint"),
    "ret_lightning.training.cost": ("ret_lightning.training.callbacks", "Cost"),
    "ret_lightning.training.curves": ("ret_lightning.training.callbacks", "EvaluationCurves RecallCurves"),
    "ret_lightning.training.evaluation": ("ret_lightning.evaluation", "RetrievalEvaluation"),
    "ret_lightning.training.examples": ("ret_lightning.training.callbacks", "Examples"),
    "ret_lightning.training.gate_maps": ("ret_lightning.training.callbacks", "GateMaps"),
    "ret_lightning.training.last_checkpoint": ("ret_lightning.training.checkpointing", "LastCheckpoint"),
    "ret_lightning.training.mixture": ("ret_lightning.training.callbacks", "MixtureLog"),
    "ret_lightning.training.module": ("ret_lightning.training", "RetModule"),
    "ret_lightning.training.progress": ("ret_lightning.training.callbacks", "Progress"),
    "ret_lightning.training.ranks": ("ret_lightning.distributed", "SameConfigDDP"),
    "ret_lightning.training.schedule": ("ret_lightning.training", "WarmupCosine"),
    "ret_lightning.training.signals": ("ret_lightning.training.callbacks", "StopOnSignal"),
    "ret_lightning.training.throughput": ("ret_lightning.training.callbacks", "Throughput"),
}

ALIASES = {f"{old}.{name}": f"{new}.{name}" for old, (new, names) in _MOVED.items() for name in names.split()}


def current_target(name: Any) -> Any:
    """Return the current name of a `_target_`; other values are returned unchanged."""
    return ALIASES.get(name, name) if isinstance(name, str) else name


def update_targets(config: DictConfig | ListConfig) -> None:
    """Replace earlier names of `_target_`s in a config, at any depth and in place, without resolving interpolations."""
    if config._is_none() or config._is_missing() or config._is_interpolation():
        return
    for key in child_keys(config):
        node: Any = config._get_node(key)
        if isinstance(node, DictConfig | ListConfig):
            update_targets(node)
        elif key == "_target_" and (value := node._value()) in ALIASES:
            node._set_value(ALIASES[value])

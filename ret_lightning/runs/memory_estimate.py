"""Estimate of the parameters and memory of a run on PyTorch's meta device, without data or weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from ret_lightning.config.build import build
from ret_lightning.config.nodes import to_plain
from ret_lightning.inputs import EncoderInput
from ret_lightning.models import RetTower
from ret_lightning.training.checkpointing.load import build_untrained
from ret_lightning.training.module import RetModule, build_parameter_groups

_PROBE_ROWS = 2  # rows of the measured batch; activations are proportional to the number of rows


@dataclass(frozen=True)
class Footprint:
    """Number of parameters, and memory in bytes per rank during training.

    Attributes:
        parameters: number of parameters.
        trained: number of parameters that are not frozen.
        weights: bytes of all parameters and buffers.
        gradients: bytes of the gradients of the trained parameters.
        optimizer: bytes of the optimizer state after one step.
        activations: bytes that the backward pass of a batch or micro-batch reads, including the embeddings of the global
            batch and the argmax indices of MaxSim. Each row has an image and a text of maximum length. With a 16-bit
            `trainer.precision`, activations are half of their float32 size. Memory of PyTorch itself (allocator, workspaces,
            CUDA context) is not included.
        rows: pairs in the batch or micro-batch.
        ranks: number of ranks; 1 if `trainer.devices` does not set it.
    """

    parameters: int
    trained: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    rows: int
    ranks: int

    @property
    def total(self) -> int:
        """Total memory in bytes."""
        return self.weights + self.gradients + self.optimizer + self.activations


def estimate_footprint(config: DictConfig) -> Footprint:
    """Estimate the memory of a training config. Nothing is downloaded and no weight is allocated.

    Args:
        config: resolved training config.

    Raises:
        UserError: if the model cannot be built.
    """
    with torch.device("meta"):
        retriever = build_untrained(to_plain(config, resolve=True))
        loss = build(config.loss)
    without_fused = {"fused": False} if "fused" in config.optimizer else {}  # fused optimizers require a real device
    module = RetModule(retriever, loss, build(config.optimizer, **without_fused), build(config.scheduler))
    parameters = list(retriever.parameters())
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    batch, ranks = config.data.batch_size, _count_ranks(config)
    rows = min(batch, config.get("micro_batch") or batch)
    probe, vectors = measure_activations(retriever, _full_inputs(retriever.query_tower, _PROBE_ROWS))
    activations = probe * rows // _PROBE_ROWS
    if "16" in str(config.trainer.precision):
        activations //= 2
    tokens, size = vectors.shape[-2] if vectors.dim() == 3 else 1, vectors.shape[-1]
    gathered = 2 * ranks * batch * tokens * size * 4
    argmax = 2 * batch * ranks * batch * tokens  # 1 byte each
    return Footprint(
        parameters=sum(p.numel() for p in parameters),
        trained=sum(p.numel() for p in trained),
        weights=_count_bytes([*parameters, *retriever.buffers()]),
        gradients=_count_bytes(trained),
        optimizer=_optimizer_state(module),
        activations=activations + gathered + argmax,
        rows=rows,
        ranks=ranks,
    )


def measure_activations(retriever: nn.Module, inputs: EncoderInput) -> tuple[int, Tensor]:
    """Measure the memory that the backward pass of `retriever(inputs, inputs)` reads, without parameters.

    Args:
        retriever: model on any device; it is set to training mode.
        inputs: inputs for both queries and passages, on the same device.

    Returns:
        The size in bytes, and the query embeddings.
    """
    storages: dict[int, int] = {}
    alive = []  # keeps storages alive, because a freed address can be reused

    def note(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        alive.append(tensor)
        return tensor

    retriever.train()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        query, passage = retriever(inputs, inputs)
    model_storages = {t.untyped_storage()._cdata for t in [*retriever.parameters(), *retriever.buffers()]}
    del passage
    return sum(size for name, size in storages.items() if name not in model_storages), query


def _full_inputs(tower: RetTower, rows: int) -> EncoderInput:
    """Return inputs on the meta device: rows with an image and a text of maximum length."""
    transform: Any = tower.image_transform
    side = transform.size
    length = getattr(tower.tokenizer, "max_length", 77)
    with torch.device("meta"):
        all_rows = torch.arange(rows)
        return EncoderInput(
            input_ids=torch.zeros(rows, length, dtype=torch.long),
            attention_mask=torch.ones(rows, length, dtype=torch.bool),
            pixel_values=torch.zeros(rows, 3, side, side),
            text_rows=all_rows,
            image_rows=all_rows,
        )


def _optimizer_state(module: RetModule) -> int:
    """Return the bytes of the optimizer state after one step on the meta device."""
    groups: list[dict[str, Any]] = build_parameter_groups(module)
    for group in groups:
        group.pop("learning_rate_scale")
    optimizer = module.make_optimizer(groups)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    return _count_bytes(v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor))


def _count_bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _count_ranks(config: DictConfig) -> int:
    devices, nodes = config.trainer.devices, config.trainer.get("num_nodes", 1)
    if not isinstance(devices, int):
        devices = len(devices) if not isinstance(devices, str) else int(devices) if devices.isdigit() else 1
    return max(devices, 1) * nodes

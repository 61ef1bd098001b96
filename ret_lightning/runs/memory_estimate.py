"""What a run would take, before anything of it is there: parameters and memory, found on PyTorch's meta device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from ret_lightning.config.build import build
from ret_lightning.inputs import EncoderInput
from ret_lightning.models import RetTower
from ret_lightning.training.checkpointing.load import build_untrained
from ret_lightning.training.module import RetModule, build_parameter_groups

_PROBE_ROWS = 2  # of the batch that is sent through; activations grow with the rows


@dataclass(frozen=True)
class Footprint:
    """Parameters, and bytes of memory on each rank while it trains.

    Attributes:
        parameters: of the model.
        trained: of them, those that are not frozen.
        weights: bytes of all parameters and buffers.
        gradients: bytes, of the trained ones.
        optimizer: bytes of the optimiser's state after a step.
        activations: bytes that the backward pass of a batch (or of a micro-batch) reads, all rows with
            a text of full length and an image, dropout as configured, with the vectors of the global batch and the
            winners of MaxSim. Half of float32's where `trainer.precision` is a 16-bit one. What PyTorch keeps beside
            (its allocator, workspaces, the CUDA context) is not counted.
        rows: of that batch or piece, pairs.
        ranks: of the run; 1 where `trainer.devices` leaves it open.
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
        """Bytes, all together."""
        return self.weights + self.gradients + self.optimizer + self.activations


def footprint(config: DictConfig) -> Footprint:
    """Of a training config, resolved. Nothing is fetched and no weight is allocated.

    Raises:
        UserError: if the model cannot be built.
    """
    with torch.device("meta"):
        retriever = build_untrained(OmegaConf.to_container(config, resolve=True))
        loss = build(config.loss)
    without_fused = {"fused": False} if "fused" in config.optimizer else {}  # which wants a real device
    module = RetModule(retriever, loss, build(config.optimizer, **without_fused), build(config.scheduler))
    parameters = list(retriever.parameters())
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    batch, ranks = config.data.batch_size, _ranks(config)
    rows = min(batch, config.get("micro_batch") or batch)
    probe, vectors = kept_activations(retriever, _inputs(retriever.query_tower, _PROBE_ROWS))
    activations = probe * rows // _PROBE_ROWS
    if "16" in str(config.trainer.precision):
        activations //= 2
    tokens, size = vectors.shape[-2] if vectors.dim() == 3 else 1, vectors.shape[-1]
    gathered = 2 * ranks * batch * tokens * size * 4
    winners = 2 * batch * ranks * batch * tokens  # a byte each
    return Footprint(
        parameters=sum(p.numel() for p in parameters),
        trained=sum(p.numel() for p in trained),
        weights=_bytes([*parameters, *retriever.buffers()]),
        gradients=_bytes(trained),
        optimizer=_optimizer_state(module),
        activations=activations + gathered + winners,
        rows=rows,
        ranks=ranks,
    )


def kept_activations(retriever: nn.Module, inputs: EncoderInput) -> tuple[int, Tensor]:
    """Bytes that the backward pass of `retriever(inputs, inputs)` reads, parameters apart, and the query vectors.

    Args:
        retriever: on any device; is left in training mode.
        inputs: for queries and passages alike, on the same device.
    """
    storages: dict[int, int] = {}
    alive = []  # a storage that is freed would give its name to another one

    def note(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        alive.append(tensor)
        return tensor

    retriever.train()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        query, passage = retriever(inputs, inputs)
    own = {t.untyped_storage()._cdata for t in [*retriever.parameters(), *retriever.buffers()]}
    del passage
    return sum(size for name, size in storages.items() if name not in own), query


def _inputs(tower: RetTower, rows: int) -> EncoderInput:
    """Rows with everything, on the meta device."""
    side = tower.image_transform.size
    length = getattr(tower.tokenizer, "max_length", 77)
    with torch.device("meta"):
        every = torch.arange(rows)
        return EncoderInput(
            input_ids=torch.zeros(rows, length, dtype=torch.long),
            attention_mask=torch.ones(rows, length, dtype=torch.bool),
            pixel_values=torch.zeros(rows, 3, side, side),
            text_rows=every,
            image_rows=every,
        )


def _optimizer_state(module: RetModule) -> int:
    """Bytes, asked of the optimiser itself after a step on the meta device."""
    groups: list[dict[str, Any]] = build_parameter_groups(module)
    for group in groups:
        group.pop("learning_rate_scale")
    optimizer = module.make_optimizer(groups)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    return _bytes(v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor))


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _ranks(config: DictConfig) -> int:
    devices, nodes = config.trainer.devices, config.trainer.get("num_nodes", 1)
    if not isinstance(devices, int):
        devices = len(devices) if not isinstance(devices, str) else int(devices) if devices.isdigit() else 1
    return max(devices, 1) * nodes

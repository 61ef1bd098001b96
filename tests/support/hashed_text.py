"""User-defined text backbones, without and with support for checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ret_lightning import RetRetriever
from ret_lightning.inputs import ClipTokenizer, ImageTransform
from ret_lightning.models import Backbone, BlockStack, LSTMGate, build_retriever
from ret_lightning.models.backbones.clip_transformers import clip_backbone
from ret_lightning.models.layer_plans import Evenly


class HashedText(BlockStack):
    """Linear blocks over embedded token ids, with only the required methods of the interface."""

    def __init__(self, width: int = 12, num_blocks: int = 3) -> None:
        super().__init__()
        self.width, self.num_blocks = width, num_blocks
        self.embedding = nn.Embedding(100, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(num_blocks))

    def embed(self, inputs: Tensor, attention_mask: Tensor | None) -> Tensor:
        return self.embedding(inputs)

    def run_block(self, index: int, states: Tensor, attention_mask: Tensor | None) -> Tensor:
        return states + torch.tanh(self.layers[index](states))

    def block(self, index: int) -> nn.Module:
        return self.layers[index]

    def embedding_parameters(self) -> Sequence[nn.Parameter]:
        return list(self.embedding.parameters())


class StoredText(HashedText):
    """A `HashedText` that can be saved and loaded."""

    model_type = "tests_stored_text"

    def layout_config(self) -> dict[str, Any]:
        return {"model_type": self.model_type, "width": self.width, "num_blocks": self.num_blocks}

    @classmethod
    def from_layout_config(cls, config: Mapping[str, Any]) -> StoredText:
        return cls(config["width"], config["num_blocks"])

    def layout_state(self) -> dict[str, Tensor]:
        return self.state_dict()

    def load_layout_state(self, state: Mapping[str, Tensor]) -> None:
        self.load_state_dict(state, assign=True)


def make(text: BlockStack, **options) -> RetRetriever:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    vision = clip_backbone(vision={**sizes, "image_size": 16, "patch_size": 8}, text=sizes).vision
    backbone = Backbone(text, vision, ClipTokenizer(), ImageTransform(16))
    sizes = {"num_tokens": 4, "hidden_size": 32, "num_heads": 2, "output_size": 8}
    return build_retriever(backbone, LSTMGate, recurrence=Evenly(2), **sizes, **options)

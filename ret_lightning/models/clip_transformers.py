"""CLIP backbones of the transformers library: pretrained from the hub or a folder, or of random weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

from ret_lightning.errors import UserError
from ret_lightning.inputs import ClipTokenizer, ImageTransform
from ret_lightning.models.backbone import Backbone, BlockStack

# The attention is called without a mask tensor, see `ClipTextStack.run_block`; only this implementation understands that.
ATTENTION = "sdpa"


class ClipTextStack(BlockStack):
    """The text half of a CLIP."""

    def __init__(self, model: CLIPTextModel) -> None:
        super().__init__()
        self.model = model
        self.width = model.config.hidden_size
        self.num_blocks = model.config.num_hidden_layers

    def embed(self, inputs: Tensor) -> Tensor:
        limit, largest = self.model.config.vocab_size, self.model.config.max_position_embeddings
        if inputs.shape[1] > largest:
            raise ValueError(f"texts of {inputs.shape[1]} tokens, but the text backbone has {largest} positions")
        if inputs.device.type == "cpu" and inputs.numel() and int(inputs.max()) >= limit:
            raise ValueError(f"token id {int(inputs.max())}, but the text backbone's vocabulary has {limit} entries")
        return self.model.embeddings(input_ids=inputs)

    def run_block(self, index: int, states: Tensor) -> Tensor:
        # CLIP's texts are padded on the right and its attention looks only to the left, so no real token sees padding
        # and no padding mask is needed: without one, PyTorch may use its fused causal attention.
        return self.model.encoder.layers[index](states, attention_mask=None, is_causal=True)

    def block_parameters(self, index: int) -> Sequence[nn.Parameter]:
        return list(self.model.encoder.layers[index].parameters())

    def embedding_parameters(self) -> Sequence[nn.Parameter]:
        return list(self.model.embeddings.parameters())


class ClipVisionStack(BlockStack):
    """The image half of a CLIP; the class token is one of the tokens."""

    def __init__(self, model: CLIPVisionModel) -> None:
        super().__init__()
        self.model = model
        self.width = model.config.hidden_size
        self.num_blocks = model.config.num_hidden_layers

    def embed(self, inputs: Tensor) -> Tensor:
        return self.model.pre_layrnorm(self.model.embeddings(inputs))

    def run_block(self, index: int, states: Tensor) -> Tensor:
        return self.model.encoder.layers[index](states, attention_mask=None, is_causal=False)

    def block_parameters(self, index: int) -> Sequence[nn.Parameter]:
        return list(self.model.encoder.layers[index].parameters())

    def embedding_parameters(self) -> Sequence[nn.Parameter]:
        return [*self.model.embeddings.parameters(), *self.model.pre_layrnorm.parameters()]


def text_stack(config: Mapping[str, Any]) -> ClipTextStack:
    """A text stack of random weights from the fields of a `CLIPTextConfig`."""
    return ClipTextStack(CLIPTextModel._from_config(CLIPTextConfig(**config), attn_implementation=ATTENTION))


def vision_stack(config: Mapping[str, Any]) -> ClipVisionStack:
    """A vision stack of random weights from the fields of a `CLIPVisionConfig`."""
    return ClipVisionStack(CLIPVisionModel._from_config(CLIPVisionConfig(**config), attn_implementation=ATTENTION))


def clip_backbone(
    text: dict | None = None,
    vision: dict | None = None,
    pretrained: str | None = None,
    tokenizer: ClipTokenizer | None = None,
    image_transform: ImageTransform | None = None,
    published_plan: str | None = None,
) -> Backbone:
    """A CLIP of the transformers library.

    Args:
        text: fields of `transformers.CLIPTextConfig`, for a model of random weights.
        vision: fields of `transformers.CLIPVisionConfig`, likewise.
        pretrained: a hub id or a folder to take architecture and weights from instead.
        tokenizer: None: CLIP's.
        image_transform: None: CLIP's at the vision model's image size.
        published_plan: see `Backbone`.

    Raises:
        UserError: if the weights are not to be had.
    """
    if pretrained is not None:
        text_model = _pretrained(CLIPTextModel, pretrained)
        vision_model = _pretrained(CLIPVisionModel, pretrained)
        text_part, vision_part = ClipTextStack(text_model), ClipVisionStack(vision_model)
    else:
        text_part, vision_part = text_stack(text or {}), vision_stack(vision or {})
    return Backbone(
        text=text_part,
        vision=vision_part,
        tokenizer=tokenizer or ClipTokenizer(max_length=text_part.model.config.max_position_embeddings),
        image_transform=image_transform or ImageTransform(size=vision_part.model.config.image_size),
        published_plan=published_plan,
    )


def _pretrained(kind: type, name: str) -> Any:
    try:
        return kind.from_pretrained(name, attn_implementation=ATTENTION, use_safetensors=True)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"backbone.pretrained={name}: no weights ({reason}). Download them once where there is a network with "
            f"`hf download {name}`, or give a folder that holds them, or set backbone.pretrained=null for random weights"
        ) from error

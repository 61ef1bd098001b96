"""CLIP backbones of the transformers library, pretrained (from the hub or a folder) or with random weights.

Shape legend: n rows that have the modality, L positions, W width of a state.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel
from transformers.utils import logging

from ret_lightning.errors import ConfigError, UserError
from ret_lightning.inputs import ClipTokenizer, ImageTransform, Tokenizer
from ret_lightning.models.backbones.base import Backbone, BlockStack, check_token_ids
from ret_lightning.models.backbones.missing_weights import no_weights
from ret_lightning.ops.onednn_linear import use_onednn_matmul

# The attention is called without a mask tensor (see `ClipTextStack.run_block`), which only this implementation supports.
ATTENTION = "sdpa"


# The relevant fields of the two configs. The other fields that transformers 4.45 wrote concern generation and classification.
_COMMON_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
    "attention_dropout",
    "projection_dim",
    "initializer_range",
    "initializer_factor",
)
TEXT_FIELDS = (*_COMMON_FIELDS, "vocab_size", "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")
VISION_FIELDS = (*_COMMON_FIELDS, "image_size", "patch_size", "num_channels")


# The fields that determine the function and the sizes of a stack.
_DECISIVE = {*_COMMON_FIELDS, "vocab_size", "max_position_embeddings", "image_size", "patch_size", "num_channels"} - {
    "projection_dim",
    "initializer_range",
    "initializer_factor",
}


class _ClipStack(BlockStack):
    """Base class of the text and vision stack."""

    model_class: Any  # the classes have no common base with these constructors
    config_class: Any
    fields: tuple[str, ...]

    def __init__(self, model: CLIPTextModel | CLIPVisionModel) -> None:
        super().__init__()
        use_onednn_matmul(model)
        self.model = model
        self.width = model.config.hidden_size
        self.num_blocks = model.config.num_hidden_layers

    def block(self, index: int) -> nn.Module:
        return self.model.encoder.layers[index]

    @classmethod
    def of_sizes(cls, config: Mapping[str, Any]) -> _ClipStack:
        """Build a stack with random weights.

        Args:
            config: Fields of the config class of transformers.

        Returns:
            The stack.

        Raises:
            ConfigError: If a field is unknown or the sizes are inconsistent.
        """
        unknown = [name for name in config if name not in cls.fields]
        if unknown:
            close = difflib.get_close_matches(unknown[0], cls.fields, n=1)
            hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(cls.fields)}"
            raise ConfigError(
                f"backbone: {cls.model_type} has no setting {unknown[0]}; {hint}",
                code="backbone-setting-unknown",
                found=unknown[0],
                allowed=tuple(cls.fields),
            )
        try:
            model = cls.model_class._from_config(cls.config_class(**config), attn_implementation=ATTENTION)
        except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise ConfigError(
                f"backbone: {cls.model_type} cannot be built: {reason}", code="backbone-not-built", reason=reason
            ) from error
        return cls(model)

    @classmethod
    def from_hub(cls, source: str, option: str) -> _ClipStack:
        """Load a stack with the weights of a hub id or a folder, in float32.

        Args:
            source: Hub id or folder.
            option: Config option with its value, for messages.

        Returns:
            The stack.

        Raises:
            UserError: If the weights are not available or incomplete.
        """
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # each stack would warn about the unused weights of the other one
        try:
            # Without dtype, transformers keeps the dtype of the file, which may be float16.
            model, loaded = cls.model_class.from_pretrained(
                source,
                attn_implementation=ATTENTION,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise no_weights(option, source, error, "a folder of weights") from error
        finally:
            logging.set_verbosity(verbosity)
        if missing := sorted(loaded["missing_keys"]):  # transformers initialises missing tensors randomly
            raise UserError(
                f"{option}: expected a CLIP of transformers, but {len(missing)} tensors of the {cls.model_type} are missing, "
                f"such as {missing[0]}; weights of another library may have a copy for transformers in another repository",
                code="backbone-weights-missing",
                found=source,
                missing=tuple(missing),
            )
        stack = cls(model)
        stack.source = source
        return stack

    @classmethod
    def from_layout_config(cls, config: Mapping[str, Any]) -> _ClipStack:
        return cls.of_sizes({name: config[name] for name in cls.fields if name in config})

    def layout_config(self) -> dict[str, Any]:
        config = {name: getattr(self.model.config, name) for name in self.fields}
        return {"model_type": self.model_type, **config}

    def layout_state(self) -> dict[str, Tensor]:
        # The layout is that of transformers 4, which has an additional enclosing module of the same name.
        return {f"{self._inner}.{name}": tensor for name, tensor in self.model.state_dict().items()}

    def load_layout_state(self, state: Mapping[str, Tensor]) -> None:
        own = {name.removeprefix(f"{self._inner}."): tensor for name, tensor in state.items()}
        self.model.load_state_dict(own, assign=True)
        embeddings = self.model.embeddings
        if embeddings.position_ids.is_meta:  # computed, not stored
            count, device = embeddings.position_ids.shape[1], embeddings.position_embedding.weight.device
            embeddings.position_ids = torch.arange(count, device=device)[None]

    @property
    def _inner(self) -> str:
        return self.model_type.removeprefix("clip_")


class ClipTextStack(_ClipStack):
    """The text encoder of a transformers CLIP."""

    model_type = "clip_text_model"
    model_class, config_class = CLIPTextModel, CLIPTextConfig
    fields = TEXT_FIELDS

    def embed(self, inputs: Tensor, attention_mask: Tensor | None) -> Tensor:
        check_token_ids(inputs, self.model.config.vocab_size, self.model.config.max_position_embeddings)
        return self.model.embeddings(input_ids=inputs)

    def run_block(self, index: int, states: Tensor, attention_mask: Tensor | None) -> Tensor:
        # Texts are padded on the right and the attention is causal, so no token attends to padding. Without a padding mask,
        # PyTorch can use its fused causal attention.
        return self.model.encoder.layers[index](states, attention_mask=None, is_causal=True)

    def embedding_parameters(self) -> Sequence[nn.Parameter]:
        return list(self.model.embeddings.parameters())


class ClipVisionStack(_ClipStack):
    """The vision encoder of a transformers CLIP. Its states include the class token."""

    model_type = "clip_vision_model"
    model_class, config_class = CLIPVisionModel, CLIPVisionConfig
    fields = VISION_FIELDS

    def embed(self, inputs: Tensor, attention_mask: Tensor | None) -> Tensor:
        return self.model.pre_layrnorm(self.model.embeddings(inputs))

    def run_block(self, index: int, states: Tensor, attention_mask: Tensor | None) -> Tensor:
        return self.model.encoder.layers[index](states, attention_mask=None, is_causal=False)

    def embedding_parameters(self) -> Sequence[nn.Parameter]:
        return [*self.model.embeddings.parameters(), *self.model.pre_layrnorm.parameters()]


def clip_backbone(
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
    pretrained: str | None = None,
    tokenizer: Tokenizer | None = None,
    image_transform: ImageTransform | None = None,
    published_plan: str | None = None,
) -> Backbone:
    """Build a CLIP backbone of the transformers library.

    Args:
        text: Fields of `transformers.CLIPTextConfig`, for a model with random weights.
        vision: Fields of `transformers.CLIPVisionConfig`, for a model with random weights.
        pretrained: Hub id or folder of pretrained weights. If `text` and `vision` are given as well they must describe these
            weights, because a run is later opened from its config without the folder.
        tokenizer: Tokenizer; None uses the CLIP tokenizer.
        image_transform: Image transform; None uses CLIP preprocessing at the image size of the vision model.
        published_plan: Key of `PUBLISHED_PLANS`, if ReT was published with this backbone.

    Returns:
        The backbone.

    Raises:
        UserError: If the weights are not available or incomplete.
        ConfigError: If a setting is unknown, or differs from that of the pretrained weights.
    """
    if pretrained is not None:
        option = f"backbone.pretrained={pretrained}"
        text_part, vision_part = (kind.from_hub(pretrained, option) for kind in (ClipTextStack, ClipVisionStack))
        for name, stack, described in (("text", text_part, text), ("vision", vision_part, vision)):
            if described is not None:
                _check_same(name, stack, described, option)
    else:
        text_part, vision_part = ClipTextStack.of_sizes(text or {}), ClipVisionStack.of_sizes(vision or {})
    return Backbone(
        text=text_part,
        vision=vision_part,
        tokenizer=tokenizer or ClipTokenizer(max_length=text_part.model.config.max_position_embeddings),
        image_transform=image_transform or ImageTransform(size=vision_part.model.config.image_size),
        published_plan=published_plan,
    )


def _check_same(name: str, stack: _ClipStack, described: Mapping[str, Any], option: str) -> None:
    """Raise ConfigError if a pretrained stack differs from the config."""
    expected, found = stack.config_class(**described), stack.model.config
    for field in stack.fields:
        if field in _DECISIVE and getattr(expected, field) != getattr(found, field):
            raise ConfigError(
                f"{option}: {field} of its {stack.model_type} is {getattr(found, field)}, but the config has "
                f"{getattr(expected, field)}; set backbone.{name}.{field}={getattr(found, field)}",
                code="backbone-setting-differs",
                key=f"backbone.{name}.{field}",
                found=getattr(expected, field),
                expected=getattr(found, field),
            )

"""CLIP backbones of the transformers library: pretrained from the hub or a folder, or of random weights."""

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

# The attention is called without a mask tensor, see `ClipTextStack.run_block`; only this implementation understands that.
ATTENTION = "sdpa"


# The fields of the two configs that make a difference; the rest of what transformers 4.45 wrote is about text generation
# and classification, and transformers 5 does not know all of it.
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


# Of these, what decides what a stack computes, and of what size.
_DECISIVE = {*_COMMON_FIELDS, "vocab_size", "max_position_embeddings", "image_size", "patch_size", "num_channels"} - {
    "projection_dim",
    "initializer_range",
    "initializer_factor",
}


class _ClipStack(BlockStack):
    """What both halves have in common."""

    model_class: type
    config_class: type
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
        """A stack of random weights from fields of the library's config class.

        Raises:
            ConfigError: naming the field that there is not, or the sizes that do not fit each other.
        """
        unknown = [name for name in config if name not in cls.fields]
        if unknown:
            close = difflib.get_close_matches(unknown[0], cls.fields, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(cls.fields)}"
            raise ConfigError(
                f"{cls.model_type} has no setting {unknown[0]}; {hint}",
                code="backbone-setting-unknown",
                found=unknown[0],
                allowed=tuple(cls.fields),
            )
        try:
            model = cls.model_class._from_config(cls.config_class(**config), attn_implementation=ATTENTION)
        except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise ConfigError(
                f"{cls.model_type} cannot be built: {reason}", code="backbone-not-built", reason=reason
            ) from error
        return cls(model)

    @classmethod
    def from_hub(cls, source: str, option: str) -> _ClipStack:
        """A stack with the weights of a hub id or a folder, float32.

        Args:
            source: the hub id or folder.
            option: of the config, with its value, for messages.

        Raises:
            UserError: if the weights are not to be had, or are another model's.
        """
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # each half would warn at length that it has no use for the other one's weights
        try:
            # The dtype is named since transformers would otherwise keep that of the file, which is float16 in some.
            model, loaded = cls.model_class.from_pretrained(
                source,
                attn_implementation=ATTENTION,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise no_weights(option, source, error, "a folder that holds them") from error
        finally:
            logging.set_verbosity(verbosity)
        if missing := sorted(loaded["missing_keys"]):  # transformers would go on with random ones
            raise UserError(
                f"{option}: no CLIP of transformers' in there: {len(missing)} tensors of the {cls.model_type} are missing, "
                f"{missing[0]} for one; a repository of another library may have a copy for transformers elsewhere",
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
        # transformers 4 had one module more on the way, of the same name as the tower's; the layout keeps it.
        return {f"{self._inner}.{name}": tensor for name, tensor in self.model.state_dict().items()}

    def load_layout_state(self, state: Mapping[str, Tensor]) -> None:
        own = {name.removeprefix(f"{self._inner}."): tensor for name, tensor in state.items()}
        self.model.load_state_dict(own, assign=True)
        embeddings = self.model.embeddings
        if embeddings.position_ids.is_meta:  # counted, not stored
            count, device = embeddings.position_ids.shape[1], embeddings.position_embedding.weight.device
            embeddings.position_ids = torch.arange(count, device=device)[None]

    @property
    def _inner(self) -> str:
        return self.model_type.removeprefix("clip_")


class ClipTextStack(_ClipStack):
    """The text half of a CLIP."""

    model_type = "clip_text_model"
    model_class, config_class = CLIPTextModel, CLIPTextConfig
    fields = TEXT_FIELDS

    def embed(self, inputs: Tensor, attention_mask: Tensor | None) -> Tensor:
        check_token_ids(inputs, self.model.config.vocab_size, self.model.config.max_position_embeddings)
        return self.model.embeddings(input_ids=inputs)

    def run_block(self, index: int, states: Tensor, attention_mask: Tensor | None) -> Tensor:
        # CLIP's texts are padded on the right and its attention is causal, so no real token attends to padding: without a
        # padding mask, PyTorch may use its fused causal attention.
        return self.model.encoder.layers[index](states, attention_mask=None, is_causal=True)

    def embedding_parameters(self) -> Sequence[nn.Parameter]:
        return list(self.model.embeddings.parameters())


class ClipVisionStack(_ClipStack):
    """The image half of a CLIP; the class token is one of the tokens."""

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
    text: dict | None = None,
    vision: dict | None = None,
    pretrained: str | None = None,
    tokenizer: Tokenizer | None = None,
    image_transform: ImageTransform | None = None,
    published_plan: str | None = None,
) -> Backbone:
    """A CLIP of the transformers library.

    Args:
        text: fields of `transformers.CLIPTextConfig`, for a model of random weights.
        vision: fields of `transformers.CLIPVisionConfig`, likewise.
        pretrained: a hub id or a folder to take the weights from. Where `text` and `vision` are given they must describe
            it: a run is opened again by its config, without the folder.
        tokenizer: None: CLIP's.
        image_transform: None: CLIP's at the vision model's image size.
        published_plan: see `Backbone`.

    Raises:
        UserError: if the weights are not to be had.
        ConfigError: if they are of other sizes than those given.
    """
    if pretrained is not None:
        option = f"backbone.pretrained={pretrained}"
        text_part, vision_part = (kind.from_hub(pretrained, option) for kind in (ClipTextStack, ClipVisionStack))
        for name, stack, wanted in (("text", text_part, text), ("vision", vision_part, vision)):
            if wanted is not None:
                _check_same(name, stack, wanted, option)
    else:
        text_part, vision_part = ClipTextStack.of_sizes(text or {}), ClipVisionStack.of_sizes(vision or {})
    return Backbone(
        text=text_part,
        vision=vision_part,
        tokenizer=tokenizer or ClipTokenizer(max_length=text_part.model.config.max_position_embeddings),
        image_transform=image_transform or ImageTransform(size=vision_part.model.config.image_size),
        published_plan=published_plan,
    )


def _check_same(name: str, stack: _ClipStack, wanted: Mapping[str, Any], option: str) -> None:
    """Raises ConfigError where a pretrained stack is not what the config describes."""
    expected, found = stack.config_class(**wanted), stack.model.config
    for field in stack.fields:
        if field in _DECISIVE and getattr(expected, field) != getattr(found, field):
            raise ConfigError(
                f"{option}: {field} of its {stack.model_type} is {getattr(found, field)}, and the config says "
                f"{getattr(expected, field)}; set backbone.{name}.{field}={getattr(found, field)}",
                code="backbone-setting-differs",
                key=f"backbone.{name}.{field}",
                found=getattr(expected, field),
                expected=getattr(found, field),
            )

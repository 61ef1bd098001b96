"""CLIP backbones of the open_clip library. Checkpoints store their weights under the names of transformers.

Shape legend: n rows that have the modality, L positions, W width of a state.
"""

from __future__ import annotations

import difflib
import pickle
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, cast

import torch
from open_clip import CLIP, get_model_config, list_models
from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model
from open_clip.transformer import QuickGELU, Transformer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ret_lightning.errors import ConfigError, UserError
from ret_lightning.inputs import ClipTokenizer, ImageTransform, Tokenizer
from ret_lightning.models.backbones.base import Backbone, BlockStack, check_token_ids
from ret_lightning.models.backbones.clip_transformers import ClipTextStack, ClipVisionStack
from ret_lightning.models.backbones.missing_weights import no_weights
from ret_lightning.ops.onednn_linear import use_onednn_matmul
from ret_lightning.runtime.git_lfs import refuse_lfs_pointer

# Names in open_clip to names in a checkpoint, outside the blocks and within a block.
_NAMES = {
    "token_embedding": "embeddings.token_embedding",
    "conv1": "embeddings.patch_embedding",
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_pre": "pre_layrnorm",
    "ln_post": "post_layernorm",
    "ln_final": "final_layer_norm",
}
_BLOCK_NAMES = {
    "ln_1": "layer_norm1",
    "attn.out_proj": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_IN_PROJECTION = "attn.in_proj_"  # one matrix in open_clip, three in a checkpoint

# The settings of a plain CLIP. An architecture with any other setting is not supported.
_SETTINGS = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}
_VISION_SETTINGS = {"image_size", "layers", "width", "head_width", "patch_size", "mlp_ratio"}
_TEXT_SETTINGS = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}
# The fields of transformers' configs that must agree with a copy of the weights.
_SAME = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "patch_size")


class _OpenClipStack(BlockStack):
    """Base class of the text and vision stack, with the modules and parameter names of open_clip.

    It has no `model_type`: a checkpoint stores it as the stack of transformers, `counterpart`, and loads it as that class.

    Args:
        transformer: The blocks.
        sizes: Fields of transformers' config that cannot be derived from the blocks.
    """

    counterpart: type[ClipTextStack | ClipVisionStack]

    def __init__(self, transformer: Transformer, **sizes: int) -> None:
        super().__init__()
        use_onednn_matmul(transformer)
        self.transformer = transformer
        self.width = transformer.width
        self.num_blocks = transformer.layers
        self._sizes = sizes

    def block(self, index: int) -> nn.Module:
        return self.transformer.resblocks[index]

    def layout_config(self) -> dict[str, Any]:
        block: Any = self.block(0)
        config = self.counterpart.config_class(
            hidden_size=self.width,
            intermediate_size=block.mlp.c_fc.out_features,
            num_hidden_layers=self.num_blocks,
            num_attention_heads=block.attn.num_heads,
            hidden_act="quick_gelu" if isinstance(block.mlp.gelu, QuickGELU) else "gelu",
            layer_norm_eps=block.ln_1.eps,
            **self._sizes,
        )
        fields = {name: getattr(config, name) for name in self.counterpart.fields}
        return {"model_type": self.counterpart.model_type, **fields}

    def layout_state(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {}
        for name, tensor in self.state_dict().items():
            theirs = self._layout_names(name)
            state.update(zip(theirs, tensor.chunk(len(theirs)), strict=True))
        return state

    def load_layout_state(self, state: Mapping[str, Tensor]) -> None:
        theirs = {name: self._layout_names(name) for name in self.state_dict()}
        differing = {name for names in theirs.values() for name in names} ^ set(state)
        if differing:
            raise RuntimeError(f"{type(self).__name__}: missing or unexpected tensors: {', '.join(sorted(differing))}")
        parts = {name: [state[n] for n in names] for name, names in theirs.items()}
        self.load_state_dict({name: p[0] if len(p) == 1 else torch.cat(p) for name, p in parts.items()}, assign=True)

    def _layout_names(self, name: str) -> list[str]:
        """Return the names of a tensor in a checkpoint; three for a matrix that a checkpoint splits along its rows."""
        root = self.counterpart.model_type.removeprefix("clip_")
        if not name.startswith("transformer.resblocks."):
            module, dot, parameter = name.partition(".")
            return [f"{root}.{_NAMES[module]}{dot}{parameter}"]
        index, rest = name.removeprefix("transformer.resblocks.").split(".", 1)
        layer = f"{root}.encoder.layers.{index}"
        if rest.startswith(_IN_PROJECTION):
            return [f"{layer}.self_attn.{part}_proj.{rest.removeprefix(_IN_PROJECTION)}" for part in "qkv"]
        module, parameter = rest.rsplit(".", 1)
        return [f"{layer}.{_BLOCK_NAMES[module]}.{parameter}"]


class OpenClipTextStack(_OpenClipStack):
    """The text encoder of an open_clip CLIP.

    Args:
        clip: The model whose modules are used; its projections are dropped.
    """

    counterpart = ClipTextStack

    def __init__(self, clip: CLIP) -> None:
        super().__init__(
            clip.transformer,
            projection_dim=clip.visual.output_dim,
            vocab_size=clip.vocab_size,
            max_position_embeddings=clip.context_length,
        )
        self.token_embedding = clip.token_embedding
        self.positional_embedding = clip.positional_embedding
        self.ln_final = clip.ln_final  # stored in checkpoints but never used

    def embed(self, inputs: Tensor, attention_mask: Tensor | None) -> Tensor:
        check_token_ids(inputs, self.token_embedding.num_embeddings, len(self.positional_embedding))
        return self.token_embedding(inputs) + self.positional_embedding[: inputs.shape[1]]

    def run_block(self, index: int, states: Tensor, attention_mask: Tensor | None) -> Tensor:
        # Causal and padded on the right, so no token attends to padding. The causal mask is not a buffer, which would stay
        # on the meta device when weights are assigned.
        length = states.shape[1]
        mask = torch.full((length, length), -torch.inf, dtype=states.dtype, device=states.device).triu(1)
        return self.block(index)(states, attn_mask=mask)

    def embedding_parameters(self) -> Sequence[nn.Parameter]:
        return [self.token_embedding.weight, self.positional_embedding]


class OpenClipVisionStack(_OpenClipStack):
    """The vision encoder of an open_clip CLIP. Its states include the class token; no patch is dropped.

    Args:
        clip: The model whose modules are used; its projections are dropped.
    """

    counterpart = ClipVisionStack

    def __init__(self, clip: CLIP) -> None:
        visual = clip.visual
        (size, _), (patch, _) = visual.image_size, visual.patch_size
        super().__init__(visual.transformer, projection_dim=visual.output_dim, image_size=size, patch_size=patch)
        self.conv1 = visual.conv1
        self.class_embedding = visual.class_embedding
        self.positional_embedding = visual.positional_embedding
        self.ln_pre = visual.ln_pre
        self.ln_post = visual.ln_post  # stored in checkpoints but never used

    def embed(self, inputs: Tensor, attention_mask: Tensor | None) -> Tensor:
        size = self._sizes["image_size"]
        if inputs.shape[-2:] != (size, size):
            raise ValueError(
                f"expected images of {size} x {size} pixels for the vision backbone, got {tuple(inputs.shape[-2:])}"
            )
        patches = self.conv1(inputs.to(self.conv1.weight.dtype)).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_embedding.expand(len(inputs), 1, -1), patches], dim=1)
        return self.ln_pre(tokens + self.positional_embedding)

    def run_block(self, index: int, states: Tensor, attention_mask: Tensor | None) -> Tensor:
        return self.block(index)(states)

    def embedding_parameters(self) -> Sequence[nn.Parameter]:
        return [self.conv1.weight, self.class_embedding, self.positional_embedding, *self.ln_pre.parameters()]


def open_clip_backbone(
    name: str,
    pretrained: str | None = None,
    library: Literal["open_clip", "transformers"] = "open_clip",
    copy: str | None = None,
    tokenizer: Tokenizer | None = None,
    image_transform: ImageTransform | None = None,
    published_plan: str | None = None,
) -> Backbone:
    """Build a CLIP backbone from an open_clip architecture name, in float32.

    Args:
        name: Architecture of open_clip with a plain text and a plain vision transformer, for example `ViT-H-14`.
        pretrained: Tag of open_clip, for example `laion2b_s32b_b79k`, or a file of open_clip weights (safetensors, or a
            pickle of tensors only); None uses random weights.
        library: Library whose modules compute the states. transformers loads its own copy of the weights.
        copy: Hub id or folder of the copy of the weights for transformers; None uses the hub repository of the tag, which
            contains both for the models of LAION.
        tokenizer: Tokenizer; None uses the CLIP tokenizer.
        image_transform: Image transform; None uses CLIP preprocessing at the image size of the model, with the mean and
            standard deviation of the tag. Images are cropped to the centre square, also for tags that were trained on
            images resized without cropping (dfn5b).
        published_plan: Key of `PUBLISHED_PLANS`, if ReT was published with this backbone.

    Returns:
        The backbone.

    Raises:
        ConfigError: If an option is unknown or inconsistent with another option.
        UserError: If the weights are not available or belong to another model.
    """
    if library not in ("open_clip", "transformers"):
        raise ConfigError(
            f"backbone.library={library}: expected open_clip or transformers",
            code="backbone-library-unknown",
            found=library,
            allowed=("open_clip", "transformers"),
        )
    config = _architecture(name)
    tag = {} if pretrained is None else _tag(name, pretrained, config.get("quick_gelu", False))
    copy = copy or _hub_id(tag)
    # On the meta device, no random weights are generated that would be replaced at once.
    replaced = pretrained is not None or library == "transformers"
    with torch.device("meta") if replaced else nullcontext():
        clip = CLIP(**config)
    stacks = OpenClipTextStack(clip), OpenClipVisionStack(clip)
    text, vision = cast("tuple[BlockStack, BlockStack]", stacks)
    if library == "transformers" and pretrained is None:
        text, vision = (s.counterpart.from_layout_config(s.layout_config()) for s in stacks)
    elif library == "transformers" and not tag:
        raise ConfigError(
            f"backbone.pretrained={pretrained}: backbone.library=transformers cannot load a file of open_clip weights; set "
            "backbone.library=open_clip, or a tag and backbone.copy=FOLDER",
            code="backbone-file-of-open-clip",
            found=pretrained,
        )
    elif library == "transformers":
        text, vision = (_copy(stack, name, copy) for stack in stacks)
    elif pretrained is not None:
        _load(*stacks, name, _file(pretrained, tag))
        text.source = vision.source = copy  # the published code loads the tokenizer from there
    # The preprocessing that the model was trained with; any mean and standard deviation fit random weights.
    images: dict[str, Any] = {"size": clip.visual.image_size[0]}
    images |= {key: tuple(tag[key]) for key in ("mean", "std") if key in tag}
    for field, expected in images.items():
        if isinstance(image_transform, ImageTransform) and getattr(image_transform, field) != expected:
            raise ConfigError(
                f"backbone.image_transform.{field}={getattr(image_transform, field)} does not fit backbone.name={name}, "
                f"backbone.pretrained={pretrained}; set it to {expected}",
                code="backbone-image-transform-differs",
                key=f"backbone.image_transform.{field}",
                found=getattr(image_transform, field),
                expected=expected,
            )
    return Backbone(
        text=text,
        vision=vision,
        tokenizer=tokenizer or ClipTokenizer(max_length=clip.context_length),
        image_transform=image_transform or ImageTransform(**images),
        published_plan=published_plan,
    )


def _architecture(name: str) -> dict[str, Any]:
    """Return the settings of an open_clip architecture, which must be a plain CLIP."""
    if name not in list_models():
        supported = {known.lower(): known for known in list_models() if not _extras(get_model_config(known))}
        close = [supported[match] for match in difflib.get_close_matches(name.lower(), supported, n=3)]
        known = f"did you mean {', '.join(close)}?" if close else f"expected one of {', '.join(supported.values())}"
        raise ConfigError(
            f"backbone.name={name}: open_clip has no such architecture; {known}",
            code="backbone-name-unknown",
            found=name,
            allowed=tuple(supported.values()),
        )
    config = get_model_config(name)
    if extras := _extras(config):
        raise ConfigError(
            f"backbone.name={name}: expected a CLIP with a plain text and a plain vision transformer, but it has the settings "
            f"{', '.join(extras[:3])}",
            code="backbone-name-not-plain",
            found=name,
            settings=tuple(extras),
        )
    return config


def _extras(config: Mapping[str, Any]) -> list[str]:
    """Return the settings of an architecture that a plain CLIP does not have."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    extras = sorted(config.keys() - _SETTINGS)
    extras += [f"vision_cfg.{key}={vision[key]}" for key in sorted(vision.keys() - _VISION_SETTINGS)]
    extras += [f"text_cfg.{key}={text[key]}" for key in sorted(text.keys() - _TEXT_SETTINGS)]
    # A list of layers means the stages of a ResNet.
    return extras if isinstance(vision.get("layers", 0), int) else [*extras, f"vision_cfg.layers={vision['layers']}"]


def _tag(name: str, pretrained: str, quick_gelu: bool) -> dict[str, Any]:
    """Return open_clip's metadata of a tag; an empty dict if `pretrained` is a file."""
    tag = get_pretrained_cfg(name, pretrained)
    if not tag and not Path(pretrained).is_file():
        raise ConfigError(
            f"backbone.pretrained={pretrained}: expected a file or one of open_clip's tags for {name}: "
            f"{', '.join(list_pretrained_tags_by_model(name)) or 'none'}",
            code="backbone-tag-unknown",
            found=pretrained,
            allowed=tuple(list_pretrained_tags_by_model(name)),
        )
    if tag and bool(tag.get("quick_gelu")) != quick_gelu:
        other = name.removesuffix("-quickgelu") if quick_gelu else f"{name}-quickgelu"
        raise ConfigError(
            f"backbone.pretrained={pretrained}: these weights were not trained with the activation function of {name}; set "
            f"backbone.name={other}",
            code="backbone-activation-differs",
            found=name,
            expected=other,
        )
    return tag


def _hub_id(tag: Mapping[str, Any]) -> str:
    return tag.get("hf_hub", "").rpartition("/")[0]  # owner/name/ or owner/name/file


def _file(pretrained: str, tag: dict[str, Any]) -> Path:
    try:
        return Path(download_pretrained(tag) if tag else pretrained)
    except (OSError, RuntimeError) as error:
        raise no_weights(f"backbone.pretrained={pretrained}", _hub_id(tag), error, "a file of weights") from error


def _load(text: OpenClipTextStack, vision: OpenClipVisionStack, name: str, file: Path) -> None:
    """Load a file of open_clip weights into both stacks, as float32."""
    weights = _read(file)
    for stack, prefix in ((text, ""), (vision, "visual.")):
        own = {prefix + key: tensor.shape for key, tensor in stack.state_dict().items()}
        parts = {key.removeprefix(prefix).split(".")[0] for key in own}  # the rest are projections and the other half
        given = {key: tensor for key, tensor in weights.items() if key.startswith(prefix)}
        given = {key: tensor for key, tensor in given.items() if key.removeprefix(prefix).split(".")[0] in parts}
        found = {key: tensor.shape for key, tensor in given.items()}
        misfit = [key for key in {**own, **found} if own.get(key) != found.get(key)]
        if misfit:
            there, expected = (tuple(s[misfit[0]]) if misfit[0] in s else "nothing" for s in (found, own))
            raise UserError(
                f"backbone.pretrained={file}: not the weights of {name}: {len(misfit)} tensors do not fit, for example "
                f"{misfit[0]}: expected {expected}, got {there}",
                code="backbone-weights-differ",
                path=file,
                key=misfit[0],
                found=there,
                expected=expected,
            )
        stack.load_state_dict({key.removeprefix(prefix): t.float() for key, t in given.items()}, assign=True)


def _read(file: Path) -> dict[str, Tensor]:
    refuse_lfs_pointer(file)
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        weights = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"backbone.pretrained={file}: expected a file of tensors only, but this pickle contains other objects, which may "
            "execute code; save the state_dict of the model as safetensors",
            code="backbone-weights-hold-code",
            path=file,
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"backbone.pretrained={file}: the weights cannot be read: {reason}",
            code="backbone-weights-unreadable",
            path=file,
            reason=reason,
        ) from error
    weights = weights.get("state_dict", weights) if isinstance(weights, dict) else {}
    # open_clip's training script saves the DDP wrapper, whose names start with "module.".
    return {key.removeprefix("module."): value for key, value in weights.items() if isinstance(value, Tensor)}


def _copy(stack: _OpenClipStack, name: str, copy: str) -> BlockStack:
    """Load the stack of transformers with the weights of a hub id or folder, and check that the sizes agree."""
    theirs = stack.counterpart.from_hub(copy, f"backbone.copy={copy}")
    expected, found = stack.layout_config(), theirs.layout_config()
    for field in _SAME:
        if expected.get(field) != found.get(field):
            raise ConfigError(
                f"backbone.copy={copy}: not a copy of {name}: expected {field}={expected[field]} in its {theirs.model_type}, "
                f"got {found[field]}",
                code="backbone-copy-differs",
                key=field,
                found=found[field],
                expected=expected[field],
            )
    return theirs

"""The interface between backbones and towers: hidden states, one tensor per block, before the final layer norm.

Shape legend: n rows that have the modality, L positions, W width of a state.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ret_lightning.config.targets.own_packages import import_own_packages
from ret_lightning.errors import ConfigError, TokenError
from ret_lightning.inputs import EncoderInput, ImageTransform, Tokenizer
from ret_lightning.models.layer_plans import LayerPlan
from ret_lightning.models.layer_states import LayerStates

# Stacks by `model_type`, the name in checkpoints. A class is registered when it is defined.
STACKS: dict[str, type[BlockStack]] = {}


class BlockStack(nn.Module, ABC):
    """The encoder of one modality: an embedding followed by a stack of transformer blocks.

    To add a backbone, derive a class from this one, set `width` and `num_blocks`, and implement `embed`, `run_block`, `block`
    and `embedding_parameters`. This base class selects the blocks that run, the states that are kept, and the parameters that
    are trained. For saving with a retriever, also implement `layout_config`, `layout_state` and `load_layout_state`; for
    loading, set a unique `model_type`, which registers the class, and implement `from_layout_config`.

    `embed` and `run_block` receive the attention mask of the texts. A bidirectional text stack must apply it, so that states
    do not depend on padding. A causal one may ignore it, because texts are padded on the right.

    Attributes:
        model_type: Name of the class in checkpoints; empty if it cannot be loaded.
        width: W, width of a state.
        num_blocks: Number of blocks.
        trained: Trained part of the used blocks: False for none, True for the embedding and all of them, n for the last n.
        source: Hub id or folder of the pretrained weights; empty for random weights.
    """

    model_type = ""
    width: int
    num_blocks: int

    def __init__(self) -> None:
        super().__init__()
        self.trained: bool | int = True
        self.source = ""
        # Stage 0 is the embedding and stage i + 1 is block i; earlier stages run without gradients.
        self._first_trained_stage = 0
        self._used_blocks = 0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, arguments in (("forward", 3), ("embed", 2), ("run_block", 3)):
            if name in cls.__dict__ and not _takes(cls.__dict__[name], 1 + arguments):
                raise ConfigError(
                    f"backbone: {cls.__module__}.{cls.__qualname__}.{name} has no parameter for the attention mask; add "
                    f"`attention_mask` as the last parameter, as in ret_lightning.models.BlockStack.{name}",
                    code="backbone-without-mask",
                    backbone=cls.__qualname__,
                    method=name,
                )
        if cls.__dict__.get("model_type"):
            _register(cls)

    @abstractmethod
    def embed(self, inputs: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Compute the input of block 0.

        Args:
            inputs: Token ids (n, L) int64, or pixel values (n, 3, h, w).
            attention_mask: (n, L) bool, True for tokens, False for padding; None for pixel values and unpadded texts.

        Returns:
            (n, L, W).
        """

    @abstractmethod
    def run_block(self, index: int, states: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Run one block.

        Args:
            index: 0-based index of the block.
            states: (n, L, W) input of the block.
            attention_mask: (n, L) bool, True for tokens, False for padding; None for pixel values and unpadded texts.

        Returns:
            (n, L, W).
        """

    @abstractmethod
    def block(self, index: int) -> nn.Module:
        """Return the module of one block, given its 0-based index."""

    @abstractmethod
    def embedding_parameters(self) -> Sequence[nn.Parameter]:
        """Return the parameters of all modules before block 0."""

    def layout_config(self) -> dict[str, Any]:
        """Return the content of `text_config` or `vision_config` in a checkpoint: JSON types, including `model_type`."""
        raise _not_storable(self, "layout_config")

    @classmethod
    def from_layout_config(cls, config: Mapping[str, Any]) -> BlockStack:
        """Build a stack with random weights from the result of `layout_config`. Unknown fields are ignored."""
        raise ConfigError(
            f"backbone: {cls.__name__} cannot be loaded from a checkpoint; implement {cls.__name__}.from_layout_config",
            code="backbone-not-readable",
            backbone=cls.__name__,
        )

    def layout_state(self) -> dict[str, Tensor]:
        """Return the weights by their names in a checkpoint, without the prefix `text_model.` or `vision_model.`."""
        raise _not_storable(self, "layout_state")

    def load_layout_state(self, state: Mapping[str, Tensor]) -> None:
        """Assign all weights by the names of `layout_state`, keeping their dtype. The tensors are not copied."""
        raise _not_storable(self, "load_layout_state")

    def forward(self, inputs: Tensor, blocks: Sequence[int], attention_mask: Tensor | None = None) -> list[Tensor]:
        """Return the hidden states of some blocks. Blocks above the last of them are not computed.

        Args:
            inputs: Token ids (n, L) int64, or pixel values (n, 3, h, w); n may be 0.
            blocks: 0-based indices of the blocks; the embedding is not a block.
            attention_mask: (n, L) bool, True for tokens, False for padding; None for pixel values and unpadded texts.

        Returns:
            One (n, L, W) tensor per block, in the order of `blocks`, before the final layer norm; (0, 1, W) if n is 0.
        """
        if len(inputs) == 0:
            # Not passed to the library, which may not support empty batches. Multiplying by 0 gives the trained
            # parameters a zero gradient, which DDP waits for.
            trained = sum(p.sum() for p in self.parameters() if p.requires_grad)
            parameter = next(self.parameters())
            empty = torch.zeros(0, 1, self.width, device=parameter.device, dtype=parameter.dtype) + 0 * trained
            return [empty for _ in blocks]
        requested = set(blocks)
        kept: dict[int, Tensor] = {}
        with self._gradients(stage=0):
            states = self.embed(inputs, attention_mask)
        for index in range(max(requested) + 1):
            with self._gradients(stage=index + 1):
                states = self.run_block(index, states, attention_mask)
            if index in requested:
                kept[index] = states
        return [kept[index] for index in blocks]

    def set_trained(self, trained: bool | int, last_used_block: int) -> None:
        """Set which part is trained. The rest is frozen: no gradients, no saved activations, always in eval mode.

        The blocks above `last_used_block` and the final layer norm are not used, so they are always frozen: DDP fails on
        unused trainable parameters.

        Args:
            trained: False for none, True for the embedding and the used blocks, n for the last n used blocks.
            last_used_block: 0-based index of the last block that the recurrence reads.

        Raises:
            ConfigError: If n is negative or larger than the number of used blocks.
        """
        used = last_used_block + 1
        if trained is not True and not 0 <= trained <= used:
            raise ConfigError(
                f"cannot train {trained} blocks of the {type(self).__name__}, which has {used} used blocks; expected 0 to "
                f"{used}, or true to train the embedding as well",
                code="trained-blocks-out-of-range",
                backbone=type(self).__name__,
                found=trained,
                most=used,
            )
        self.trained = trained
        self._used_blocks = used
        self._first_trained_stage = 0 if trained is True else 1 + used - trained if trained else 1 + self.num_blocks
        self.requires_grad_(False)
        if trained is True:
            for parameter in self.embedding_parameters():
                parameter.requires_grad_(True)
        for block in self._trained_blocks():
            block.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> BlockStack:
        """Set training or eval mode. Unlike in PyTorch, frozen modules stay in eval mode."""
        super().train(mode and self.trained is True)
        for block in self._trained_blocks():
            block.train(mode)
        return self

    def _trained_blocks(self) -> list[nn.Module]:
        return [self.block(i) for i in range(max(self._first_trained_stage - 1, 0), self._used_blocks)]

    def _gradients(self, stage: int) -> AbstractContextManager:
        """Return a context that disables gradients, and thereby saved activations, for frozen stages."""
        return nullcontext() if stage >= self._first_trained_stage else torch.no_grad()


@dataclass
class Backbone:
    """A text stack and a vision stack with their tokenizer and image transform.

    Attributes:
        text: Computes states from token ids.
        vision: Computes states from pixel values.
        tokenizer: Maps texts to token ids and attention mask.
        image_transform: Maps an RGB image to pixel values.
        published_plan: Key of `PUBLISHED_PLANS`, if ReT was published with this backbone.
    """

    text: BlockStack
    vision: BlockStack
    tokenizer: Tokenizer | Callable[[Sequence[str]], tuple[Tensor, Tensor]]
    image_transform: ImageTransform | Callable[..., Tensor]
    published_plan: str | None = None

    def states(self, inputs: EncoderInput, *plans: LayerPlan) -> tuple[LayerStates, LayerStates]:
        """Compute the states that towers read of a batch, with one pass of each stack.

        The stack of a modality runs only on the rows that have it.

        Args:
            inputs: The batch.
            plans: Layer plans of all towers that read the states.

        Returns:
            Text states and image states, the arguments of `RetTower.recur`.

        Raises:
            ConfigError: If a user-defined stack returns states of the wrong number or shape.
        """
        (text,) = text_states(self.text, [inputs], [block for plan in plans for block in plan.text])
        (image,) = image_states(self.vision, [inputs], [block for plan in plans for block in plan.vision])
        return text, image


def text_states(stack: BlockStack, batches: Sequence[EncoderInput], blocks: Iterable[int]) -> list[LayerStates]:
    """Compute the text states of each batch, with one pass over the rows of all batches that have a text.

    Args:
        stack: A text stack.
        batches: One or more batches; the states of each have its own length L.
        blocks: 0-based indices of the blocks whose states are returned.

    Raises:
        ConfigError: If a user-defined stack returns states of the wrong number or shape.
    """
    ids = [batch.input_ids[batch.text_rows] for batch in batches]
    masks = [batch.attention_mask[batch.text_rows] for batch in batches]
    states = _computed(stack, _padded(ids), blocks, _padded(masks))
    split = {block: state.split([len(x) for x in ids]) for block, state in states.items()}
    return [
        LayerStates(
            {block: parts[at][:, : mask.shape[1]] for block, parts in split.items()},
            batch.text_rows,
            len(batch),
            padding=~mask,
        )
        for at, (batch, mask) in enumerate(zip(batches, masks, strict=True))
    ]


def image_states(stack: BlockStack, batches: Sequence[EncoderInput], blocks: Iterable[int]) -> list[LayerStates]:
    """Compute the image states of each batch, with one pass over the rows of all batches that have an image.

    Args:
        stack: A vision stack.
        batches: One or more batches.
        blocks: 0-based indices of the blocks whose states are returned.

    Raises:
        ConfigError: If a user-defined stack returns states of the wrong number or shape.
    """
    pixels = [batch.pixel_values for batch in batches]
    states = _computed(stack, pixels[0] if len(pixels) == 1 else torch.cat(pixels), blocks, None)
    split = {block: state.split([len(x) for x in pixels]) for block, state in states.items()}
    return [
        LayerStates({block: parts[at] for block, parts in split.items()}, batch.image_rows, len(batch))
        for at, batch in enumerate(batches)
    ]


def _padded(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate (n_i, L_i) tensors to (sum of n_i, max of L_i), padded with zeros on the right."""
    length = max(tensor.shape[1] for tensor in tensors)
    return torch.cat([pad(tensor, (0, length - tensor.shape[1])) for tensor in tensors])


def _computed(
    stack: BlockStack, inputs: Tensor, blocks: Iterable[int], attention_mask: Tensor | None
) -> dict[int, Tensor]:
    """Return the states by block, and check their shapes because the stack may be user-defined."""
    requested = sorted(set(blocks))
    states = stack(inputs, requested, attention_mask)
    # A text has one state per token; the number of states of an image is up to the stack.
    length = inputs.shape[1] if inputs.dim() == 2 and len(inputs) else None
    expected = (len(inputs), length or "L", stack.width)
    name = type(stack).__name__
    if len(states) != len(requested):
        raise ConfigError(
            f"backbone: expected one tensor of states per block ({len(requested)}) from {name}, got {len(states)}",
            code="backbone-states-missing",
            backbone=name,
            found=len(states),
            expected=len(requested),
        )
    for block, state in zip(requested, states, strict=True):
        shape = tuple(state.shape)
        if len(shape) != 3 or shape[::2] != expected[::2] or length not in (None, shape[1]):
            raise ConfigError(
                f"backbone: expected states of shape (n, L, width) = ({', '.join(map(str, expected))}) from {name} for block "
                f"{block}, got {shape}",
                code="backbone-states-shape",
                backbone=name,
                found=shape,
                expected=expected,
            )
    return dict(zip(requested, states, strict=True))


def check_token_ids(input_ids: Tensor, vocabulary: int, positions: int) -> None:
    """Check that token ids (n, L) are in the range of a text backbone. The values of ids on a GPU are not checked.

    Args:
        input_ids: (n, L) int64.
        vocabulary: Number of entries of the vocabulary.
        positions: Maximum number of tokens per text.

    Raises:
        TokenError: If a text is too long or a token id is out of range.
    """
    if input_ids.shape[1] > positions:
        raise TokenError(
            f"texts have {input_ids.shape[1]} tokens, expected at most {positions}, the positions of the text backbone",
            code="text-longer-than-positions",
            found=input_ids.shape[1],
            most=positions,
        )
    if input_ids.device.type == "cpu" and input_ids.numel() and int(input_ids.max()) >= vocabulary:
        raise TokenError(
            f"token id {int(input_ids.max())} is outside the {vocabulary} entries of the text backbone; use its tokenizer",
            code="token-id-out-of-vocabulary",
            found=int(input_ids.max()),
            entries=vocabulary,
        )


def find_stack(model_type: str, modules: Sequence[str] = ()) -> tuple[type[BlockStack] | None, str]:
    """Find a stack class by its `model_type`, in this package, the imported classes and the user's packages.

    Args:
        model_type: `model_type` attribute of the class.
        modules: Modules that a checkpoint lists for its user-defined classes; imported only if RET_LIGHTNING_TARGETS allows
            their package.

    Returns:
        The class, or None and a hint for the error message.
    """
    if model_type in STACKS:
        return STACKS[model_type], ""
    folder = Path(__file__).parent
    ours = [module.name for module in iter_modules([str(folder)]) if not module.name.startswith("_")]
    # Modules whose source contains the name come first, because the others may import large libraries.
    ours.sort(key=lambda name: f'"{model_type}"' not in (folder / f"{name}.py").read_text(encoding="utf-8"))
    for name in ours:
        if model_type not in STACKS:
            import_module(f"{__package__}.{name}")
    hint = "" if model_type in STACKS else import_own_packages(modules)
    return STACKS.get(model_type), hint


def _register(stack: type[BlockStack]) -> None:
    names = [f"{each.__module__}.{each.__qualname__}" for each in (stack, STACKS.get(stack.model_type, stack))]
    # A class that is redefined, as in a notebook or when its file is run, replaces the earlier one.
    if names[0] != names[1] and "__main__" not in (stack.__module__, STACKS[stack.model_type].__module__):
        raise ConfigError(
            f"backbone: model_type {stack.model_type!r} of {names[0]} is already used by {names[1]}; set a unique model_type",
            code="backbone-model-type-taken",
            backbone=names[0],
            found=stack.model_type,
            other=names[1],
        )
    STACKS[stack.model_type] = stack


def _takes(method: Callable[..., Any], arguments: int) -> bool:
    try:
        inspect.signature(method).bind(*range(arguments))
    except TypeError:
        return False
    return True


def _not_storable(stack: BlockStack, method: str) -> ConfigError:
    return ConfigError(
        f"backbone: {type(stack).__name__} cannot be stored in a checkpoint; implement {method}",
        code="backbone-not-storable",
        backbone=type(stack).__name__,
        method=method,
    )

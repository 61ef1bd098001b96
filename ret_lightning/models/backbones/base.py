"""What a backbone is to a tower: the states of its blocks, one tensor per block, before the final layer norm."""

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

# The stacks that a checkpoint can name, by `model_type`; a class registers itself when it is defined.
STACKS: dict[str, type[BlockStack]] = {}


class BlockStack(nn.Module, ABC):
    """One modality of a backbone: an embedding and a stack of transformer blocks.

    Subclasses set `width` (of a state) and `num_blocks`, and implement the embedding and the blocks; which blocks run, which
    states are kept, and what is trained is decided here, once for all libraries. To be saved with a retriever, a subclass
    also implements `layout_config`, `layout_state` and `load_layout_state`, its settings and weights as a checkpoint stores
    them; to be read again, it sets a `model_type` of its own, which registers it, and implements `from_layout_config`.

    Every method gets the attention mask of the texts. A bidirectional text stack has to apply it in its attention, so that
    states do not depend on padding; a causal one, whose texts are padded on the right, may ignore it.

    Attributes:
        width: of a state.
        num_blocks: how many blocks there are.
        trained: what is trained of the part that is used: nothing (False), everything (True), or the last n blocks.
        source: hub id or folder that the weights came from; empty for random ones.
    """

    model_type = ""
    width: int
    num_blocks: int

    def __init__(self) -> None:
        super().__init__()
        self.trained: bool | int = True
        self.source = ""
        # Stage 0 is the embedding, stage i + 1 is block i; the stages below this one run without gradients.
        self._first_trained_stage = 0
        self._used_blocks = 0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, arguments in (("forward", 3), ("embed", 2), ("run_block", 3)):
            if name in cls.__dict__ and not _takes(cls.__dict__[name], 1 + arguments):
                raise ConfigError(
                    f"backbone: {cls.__module__}.{cls.__qualname__}.{name} does not take an attention mask; add the argument "
                    f"`attention_mask` after the others, see ret_lightning.models.BlockStack.{name}",
                    code="backbone-without-mask",
                    backbone=cls.__qualname__,
                    method=name,
                )
        if cls.__dict__.get("model_type"):
            _register(cls)

    @abstractmethod
    def embed(self, inputs: Tensor, attention_mask: Tensor | None) -> Tensor:
        """What enters block 0: (n, L, width) from token ids (n, L) or pixels (n, 3, h, w).

        Args:
            inputs: token ids int64, or pixels.
            attention_mask: (n, L) bool, True where a token is; None: no padding, as for pixels.
        """

    @abstractmethod
    def run_block(self, index: int, states: Tensor, attention_mask: Tensor | None) -> Tensor:
        """One block: (n, L, width) to (n, L, width); the mask is that of `embed`."""

    @abstractmethod
    def block(self, index: int) -> nn.Module:
        """The module of one block."""

    @abstractmethod
    def embedding_parameters(self) -> Sequence[nn.Parameter]:
        """The parameters of what comes before block 0."""

    def layout_config(self) -> dict[str, Any]:
        """What stands in a checkpoint's config under `text_config` or `vision_config`: plain JSON, with `model_type`."""
        raise _not_storable(self, "layout_config")

    @classmethod
    def from_layout_config(cls, config: Mapping[str, Any]) -> BlockStack:
        """A stack of random weights from what `layout_config` gave; fields that it does not know are passed over."""
        raise ConfigError(
            f"{cls.__name__} does not say how it is read from a checkpoint (from_layout_config)",
            code="backbone-not-readable",
            backbone=cls.__name__,
        )

    def layout_state(self) -> dict[str, Tensor]:
        """Its weights by the names that they have in a checkpoint, below `text_model.` or `vision_model.`."""
        raise _not_storable(self, "layout_state")

    def load_layout_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes weights by the names of `layout_state`, all of them, and makes them its own, with their dtype."""
        raise _not_storable(self, "load_layout_state")

    def forward(self, inputs: Tensor, blocks: Sequence[int], attention_mask: Tensor | None = None) -> list[Tensor]:
        """The states of some blocks, in the order of `blocks`; blocks above the last of them are not computed.

        Args:
            inputs: token ids (n, L) int64, or pixels (n, 3, h, w); n may be 0.
            blocks: 0-based indices; the embedding is not a block.
            attention_mask: (n, L) bool, True where a token is; None: no padding, as for pixels.

        Returns:
            One (n, L, width) tensor per block, before the final layer norm; (0, 1, width) where n is 0.
        """
        if len(inputs) == 0:
            # Libraries differ in what they do with no rows at all. The product with 0 gives the trained parameters a
            # gradient, of zeros, so that DDP does not wait for it.
            trained = sum(p.sum() for p in self.parameters() if p.requires_grad)
            parameter = next(self.parameters())
            nothing = torch.zeros(0, 1, self.width, device=parameter.device, dtype=parameter.dtype) + 0 * trained
            return [nothing for _ in blocks]
        wanted = set(blocks)
        kept: dict[int, Tensor] = {}
        with self._gradients(stage=0):
            states = self.embed(inputs, attention_mask)
        for index in range(max(wanted) + 1):
            with self._gradients(stage=index + 1):
                states = self.run_block(index, states, attention_mask)
            if index in wanted:
                kept[index] = states
        return [kept[index] for index in blocks]

    def set_trained(self, trained: bool | int, last_used_block: int) -> None:
        """Decides what is trained; the rest has no gradients, keeps no activations and is always in eval mode.

        The blocks above `last_used_block` and the final layer norm never take part, so they stay without gradients:
        an unused trainable parameter stops DDP.

        Args:
            trained: False: nothing; True: embedding and blocks; n: the last n of the blocks that are used.
            last_used_block: 0-based.

        Raises:
            ConfigError: if there are fewer than n such blocks.
        """
        used = last_used_block + 1
        if trained is not True and not 0 <= trained <= used:
            raise ConfigError(
                f"{trained} blocks of the {type(self).__name__} are to be trained, but {used} are used: choose 0 to {used}, "
                "or true for the embedding as well",
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
        """As in PyTorch, except that what is frozen stays in eval mode."""
        super().train(mode and self.trained is True)
        for block in self._trained_blocks():
            block.train(mode)
        return self

    def _trained_blocks(self) -> list[nn.Module]:
        return [self.block(i) for i in range(max(self._first_trained_stage - 1, 0), self._used_blocks)]

    def _gradients(self, stage: int) -> AbstractContextManager:
        """Without gradients no activations are kept, which is most of what a frozen backbone would cost."""
        return nullcontext() if stage >= self._first_trained_stage else torch.no_grad()


@dataclass
class Backbone:
    """A pair of stacks with what prepares their inputs.

    Attributes:
        text: states of token ids.
        vision: states of pixels.
        tokenizer: texts to ids and mask.
        image_transform: an RGB image to pixels.
        published_plan: name of the layer plan that ReT was published with on this backbone, if it was (see layer_plans.py).
    """

    text: BlockStack
    vision: BlockStack
    tokenizer: Tokenizer | Callable[[Sequence[str]], tuple[Tensor, Tensor]]
    image_transform: ImageTransform | Callable[..., Tensor]
    published_plan: str | None = None

    def states(self, inputs: EncoderInput, *plans: LayerPlan) -> tuple[LayerStates, LayerStates]:
        """The states that towers read of a batch, by one pass of each stack: of the texts, and of the images.

        A row without a modality costs no pass of its stack. `RetTower.recur` takes the states.

        Args:
            inputs: the batch.
            plans: of the towers that read the states; blocks of all of them are kept.
        """
        (text,) = text_states(self.text, [inputs], [block for plan in plans for block in plan.text])
        (image,) = image_states(self.vision, [inputs], [block for plan in plans for block in plan.vision])
        return text, image


def text_states(stack: BlockStack, batches: Sequence[EncoderInput], blocks: Iterable[int]) -> list[LayerStates]:
    """The states of the texts of each batch, by one pass over the rows of all batches that have a text.

    Args:
        stack: a text stack.
        batches: one or more; each gets states of its own length.
        blocks: the blocks whose states are kept.

    Raises:
        ConfigError: if a stack of the user's own returns another number of states, or states of another shape.
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
    """As `text_states`, of the images by a vision stack."""
    pixels = [batch.pixel_values for batch in batches]
    states = _computed(stack, pixels[0] if len(pixels) == 1 else torch.cat(pixels), blocks, None)
    split = {block: state.split([len(x) for x in pixels]) for block, state in states.items()}
    return [
        LayerStates({block: parts[at] for block, parts in split.items()}, batch.image_rows, len(batch))
        for at, batch in enumerate(batches)
    ]


def _padded(tensors: Sequence[Tensor]) -> Tensor:
    """(sum of n_i, longest L) from (n_i, L_i), with zeros on the right."""
    length = max(tensor.shape[1] for tensor in tensors)
    return torch.cat([pad(tensor, (0, length - tensor.shape[1])) for tensor in tensors])


def _computed(
    stack: BlockStack, inputs: Tensor, blocks: Iterable[int], attention_mask: Tensor | None
) -> dict[int, Tensor]:
    """Block to states, which are checked: the stack may be the user's own."""
    wanted = sorted(set(blocks))
    states = stack(inputs, wanted, attention_mask)
    # An image may have any number of states, a token has one.
    length = inputs.shape[1] if inputs.dim() == 2 and len(inputs) else None
    expected = (len(inputs), length or "L", stack.width)
    name = type(stack).__name__
    if len(states) != len(wanted):
        raise ConfigError(
            f"backbone: {name} returned {len(states)} states for {len(wanted)} blocks; expected one per block",
            code="backbone-states-missing",
            backbone=name,
            found=len(states),
            expected=len(wanted),
        )
    for block, state in zip(wanted, states, strict=True):
        shape = tuple(state.shape)
        if len(shape) != 3 or shape[::2] != expected[::2] or length not in (None, shape[1]):
            raise ConfigError(
                f"backbone: {name} returned states of the shape {shape} for block {block}; expected (n, L, width) = "
                f"({', '.join(map(str, expected))})",
                code="backbone-states-shape",
                backbone=name,
                found=shape,
                expected=expected,
            )
    return dict(zip(wanted, states, strict=True))


def check_token_ids(input_ids: Tensor, vocabulary: int, positions: int) -> None:
    """Raises TokenError where token ids (n, L) do not fit a text backbone; ids on a GPU are not looked at."""
    if input_ids.shape[1] > positions:
        raise TokenError(
            f"texts of {input_ids.shape[1]} tokens, but the text backbone has {positions} positions",
            code="text-longer-than-positions",
            found=input_ids.shape[1],
            most=positions,
        )
    if input_ids.device.type == "cpu" and input_ids.numel() and int(input_ids.max()) >= vocabulary:
        raise TokenError(
            f"token id {int(input_ids.max())}, but the text backbone's vocabulary has {vocabulary} entries",
            code="token-id-out-of-vocabulary",
            found=int(input_ids.max()),
            entries=vocabulary,
        )


def find_stack(model_type: str, modules: Sequence[str] = ()) -> tuple[type[BlockStack] | None, str]:
    """The stack that a checkpoint names, of this package, of what is imported, or of the user's packages.

    Args:
        model_type: of the class.
        modules: where the checkpoint says that its own parts are; imported only if RET_LIGHTNING_TARGETS allows it.

    Returns:
        The class, or None and what to do about it, for error messages.
    """
    if model_type in STACKS:
        return STACKS[model_type], ""
    folder = Path(__file__).parent
    ours = [module.name for module in iter_modules([str(folder)]) if not module.name.startswith("_")]
    # A module that has the name in its source comes first: the others may import libraries for seconds.
    ours.sort(key=lambda name: f'"{model_type}"' not in (folder / f"{name}.py").read_text(encoding="utf-8"))
    for name in ours:
        if model_type not in STACKS:
            import_module(f"{__package__}.{name}")
    hint = "" if model_type in STACKS else import_own_packages(modules)
    return STACKS.get(model_type), hint


def _register(stack: type[BlockStack]) -> None:
    names = [f"{each.__module__}.{each.__qualname__}" for each in (stack, STACKS.get(stack.model_type, stack))]
    # A class that is defined a second time, as in a notebook or when its file is run, replaces the first one.
    if names[0] != names[1] and "__main__" not in (stack.__module__, STACKS[stack.model_type].__module__):
        raise ConfigError(
            f"backbone: {names[0]} has the model_type {stack.model_type!r} of {names[1]}; give it one of its own",
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
        f"{type(stack).__name__} does not say how it is stored in a checkpoint ({method})",
        code="backbone-not-storable",
        backbone=type(stack).__name__,
        method=method,
    )

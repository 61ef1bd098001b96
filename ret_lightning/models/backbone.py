"""What a backbone is to a tower: the states of its blocks, one tensor a block, before the final layer norm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ret_lightning.inputs import ClipTokenizer, ImageTransform


class BlockStack(nn.Module, ABC):
    """One modality of a backbone: an embedding and a stack of transformer blocks.

    Subclasses set `width` (of a state) and `num_blocks`, and give the embedding and the blocks; which blocks run, which
    states are kept, and what is frozen is decided here, once for all libraries.
    """

    width: int
    num_blocks: int

    def __init__(self) -> None:
        super().__init__()
        self.frozen = False

    @abstractmethod
    def embed(self, inputs: Tensor) -> Tensor:
        """What enters block 0: (n, L, width) from token ids (n, L) or pixels (n, 3, h, w)."""

    @abstractmethod
    def run_block(self, index: int, states: Tensor) -> Tensor:
        """One block: (n, L, width) to (n, L, width)."""

    @abstractmethod
    def block_parameters(self, index: int) -> Sequence[nn.Parameter]:
        """The parameters of one block."""

    @abstractmethod
    def embedding_parameters(self) -> Sequence[nn.Parameter]:
        """The parameters of what comes before block 0."""

    def forward(self, inputs: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        """The states of the blocks named, in that order; blocks above the last one named are not computed.

        Args:
            inputs: token ids (n, L) int64, or pixels (n, 3, h, w); n may be 0.
            blocks: 0-based indices; the embedding is not a block.

        Returns:
            One (n, L, width) tensor a name, before the final layer norm; (0, 1, width) where n is 0.
        """
        if len(inputs) == 0:
            # Libraries differ in what they do with no rows at all. The product with 0 gives the trained parameters a
            # gradient, of zeros, so that DDP does not wait for it.
            trained = sum(p.sum() for p in self.parameters() if p.requires_grad)
            nothing = torch.zeros(0, 1, self.width, device=inputs.device) + 0 * trained
            return [nothing for _ in blocks]
        wanted = set(blocks)
        kept: dict[int, Tensor] = {}
        with torch.no_grad() if self.frozen else nullcontext():
            states = self.embed(inputs)
            for index in range(max(wanted) + 1):
                states = self.run_block(index, states)
                if index in wanted:
                    kept[index] = states
        return [kept[index] for index in blocks]

    def freeze(self, frozen: bool, last_used_block: int) -> None:
        """Frozen: no gradients, no activations kept, always in eval mode. Otherwise the used part is trained.

        The blocks above `last_used_block` and the final layer norm never take part, so they stay without gradients:
        an unused trainable parameter stops DDP.
        """
        self.frozen = frozen
        self.requires_grad_(False)
        if not frozen:
            used = [*self.embedding_parameters()]
            for index in range(last_used_block + 1):
                used += self.block_parameters(index)
            for parameter in used:
                parameter.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> BlockStack:
        """As in PyTorch, except that a frozen stack stays in eval mode."""
        return super().train(mode and not self.frozen)


@dataclass
class Backbone:
    """A pair of stacks with what prepares their inputs.

    Attributes:
        text: states of token ids.
        vision: states of pixels.
        tokenizer: texts to ids and mask.
        image_transform: an RGB image to pixels.
        published_plan: name of the layer plan that ReT was published with on this backbone, if it was (see layers.py).
    """

    text: BlockStack
    vision: BlockStack
    tokenizer: ClipTokenizer | Callable[[Sequence[str]], tuple[Tensor, Tensor]]
    image_transform: ImageTransform | Callable[..., Tensor]
    published_plan: str | None = None

"""A tower: a pair of backbones and the recurrence over their depth, from an `EncoderInput` to k vectors per row.

Shape legend: B rows, k vectors per row, H hidden size, d output size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ret_lightning.inputs import EncoderInput
from ret_lightning.models.backbones.base import Backbone
from ret_lightning.models.cell import RetCell
from ret_lightning.models.gate_activations import ActivationMeans, RowActivations
from ret_lightning.models.layer_plans import LayerPlan
from ret_lightning.models.layer_states import LayerStates, ModalityStates
from ret_lightning.ops.onednn_linear import Linear


class RetTower(nn.Module):
    """An encoder for one side of the retriever, queries or passages (ReT, arXiv 2503.01980, section 3).

        q_0     = start                                                       learned, (1, k, H)
        q_{l+1} = Cell(q_l, A_T[l] T[text_l], A_V[l] V[vision_l])             for each step l of the layer plan
        output  = W_o q_S                                                     or W_o mean_k(q_S) if `pooled`

    T[b] and V[b] are the hidden states of block b of the text and the vision backbone, before the final layer norm. A_T[l] and
    A_V[l] are linear adapters with bias from the width of the backbone to H, one per step and modality. W_o has no bias.

    Args:
        backbone: The text and vision stacks with their tokenizer and image transform. Towers may share it.
        plan: Text and vision block of each step.
        cells: One cell for all steps, as published, or one cell per step, all of the same sizes.
        output_size: d, width of the output vectors; 0 omits the output map, so that d = H.
        pooled: Whether to average the k vectors of a row before the output map, which yields one vector per row.

    Attributes:
        start: (1, k, H) learned initial state, initialised from a normal distribution of standard deviation 0.2.
        tokenizer: The tokenizer of the backbone; maps texts to token ids and attention mask.
        image_transform: The image transform of the backbone; maps an RGB image to pixel values.

    Raises:
        ConfigError: If the plan does not fit the backbone.
        ValueError: If the number of cells is neither 1 nor the number of steps.
    """

    def __init__(
        self,
        backbone: Backbone,
        plan: LayerPlan,
        cells: Sequence[RetCell],
        output_size: int = 128,
        pooled: bool = False,
    ) -> None:
        super().__init__()
        self.plan = plan.check(backbone.text.num_blocks, backbone.vision.num_blocks)
        if len(cells) not in (1, plan.steps):
            raise ValueError(f"expected 1 cell, or {plan.steps} cells for {plan.steps} steps, got {len(cells)}")
        self.pooled = pooled
        self.tokenizer = backbone.tokenizer
        self.image_transform = backbone.image_transform
        self.text_backbone = backbone.text
        self.vision_backbone = backbone.vision
        tokens, hidden_size = cells[0].num_tokens, cells[0].hidden_size
        self.start = nn.Parameter(torch.randn(1, tokens, hidden_size) * 0.2)
        self.text_adapters = nn.ModuleList(Linear(backbone.text.width, hidden_size) for _ in plan.text)
        self.image_adapters = nn.ModuleList(Linear(backbone.vision.width, hidden_size) for _ in plan.vision)
        self.cells = cast("Sequence[RetCell]", nn.ModuleList(cells))
        self.output = Linear(hidden_size, output_size, bias=False) if output_size else nn.Identity()

    @property
    def backbone(self) -> Backbone:
        """The text and vision stacks with the tower's tokenizer and image transform."""
        return Backbone(self.text_backbone, self.vision_backbone, self.tokenizer, self.image_transform)

    @property
    def output_size(self) -> int:
        """d, the width of an output vector."""
        return self.output.out_features if isinstance(self.output, nn.Linear) else self.cells[0].hidden_size

    @property
    def row_shape(self) -> tuple[int, int]:
        """The shape of the vectors of one row: (k, d), or (1, d) if `pooled`."""
        return 1 if self.pooled else self.start.shape[1], self.output_size

    def forward(self, inputs: EncoderInput, means: ActivationMeans | RowActivations | None = None) -> Tensor:
        """Encode a batch.

        Args:
            inputs: B rows. The backbone of a modality runs only on the rows that have it.
            means: Collects the gate activations, if given.

        Returns:
            (B, k, d) vectors, or (B, d) if `pooled`; not normalised.
        """
        return self.recur(*self.backbone.states(inputs, self.plan), means)

    def recur(
        self, text: LayerStates, image: LayerStates, means: ActivationMeans | RowActivations | None = None
    ) -> Tensor:
        """Run the recurrence on backbone states that are already computed, for example for several towers at once.

        Args:
            text: Text states of B rows, including the blocks of the tower's plan.
            image: Image states of the same rows, including the blocks of the tower's plan.
            means: Collects the gate activations, if given.

        Returns:
            (B, k, d) vectors, or (B, d) if `pooled`; not normalised.
        """
        # Contiguous, as the later states are: each layout needs its own compiled graphs.
        state = self.start.expand(text.count, -1, -1).contiguous()
        text_present, image_present = text.present(state.dtype), image.present(state.dtype)
        steps = zip(self.plan.text, self.text_adapters, self.plan.vision, self.image_adapters, strict=True)
        for step, (text_block, text_adapter, image_block, image_adapter) in enumerate(steps):
            cell = self.cells[step % len(self.cells)]
            state, activations = cell(
                state,
                ModalityStates(text_adapter(text[text_block]), text.rows, text_present, text.padding),
                ModalityStates(image_adapter(image[image_block]), image.rows, image_present, image.padding),
            )
            if means is not None:
                means.add(step, activations, text_present, image_present)
        if self.pooled:
            state = state.mean(dim=1)
        return self.output(state)


def normalised(vectors: Tensor) -> Tensor:
    """L2-normalise vectors along the last axis.

    Args:
        vectors: (..., d), floating point.

    Returns:
        (..., d) vectors of length 1 in float32, or float64 for float64 input.
    """
    return torch.nn.functional.normalize(vectors if vectors.dtype == torch.float64 else vectors.float(), dim=-1)

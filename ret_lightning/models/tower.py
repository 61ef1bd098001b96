"""A tower: the recurrence over one pair of backbones, from an `EncoderInput` to k vectors per row."""

from __future__ import annotations

from collections.abc import Sequence

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
    """One side of the retriever: queries, or passages.

    Args:
        backbone: states of texts and images, and what prepares them; may be shared with the other tower.
        plan: which blocks feed which step.
        cells: one that is applied at every step, as published, or one for each step. All of the same sizes.
        output_size: d; a linear map without bias from H; 0: no map, d = H.
        pooled: average the k vectors of a row before the map: one vector a row.

    Attributes:
        start: (1, k, H), the learned state that the first step starts from, drawn from N(0, 0.2).
        tokenizer: the backbone's: texts to ids and mask.
        image_transform: the backbone's: an RGB image to pixels.
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
            raise ValueError(f"{len(cells)} cells for {plan.steps} steps; one for all of them, or one each")
        self.pooled = pooled
        self.tokenizer = backbone.tokenizer
        self.image_transform = backbone.image_transform
        self.text_backbone = backbone.text
        self.vision_backbone = backbone.vision
        tokens, hidden_size = cells[0].num_tokens, cells[0].hidden_size
        self.start = nn.Parameter(torch.randn(1, tokens, hidden_size) * 0.2)
        self.text_adapters = nn.ModuleList(Linear(backbone.text.width, hidden_size) for _ in plan.text)
        self.image_adapters = nn.ModuleList(Linear(backbone.vision.width, hidden_size) for _ in plan.vision)
        self.cells = nn.ModuleList(cells)
        self.output = Linear(hidden_size, output_size, bias=False) if output_size else nn.Identity()

    @property
    def backbone(self) -> Backbone:
        """The two stacks, with the tower's tokenizer and image transform."""
        return Backbone(self.text_backbone, self.vision_backbone, self.tokenizer, self.image_transform)

    @property
    def output_size(self) -> int:
        """d, the size of a vector."""
        return self.output.out_features if isinstance(self.output, nn.Linear) else self.cells[0].hidden_size

    @property
    def row_shape(self) -> tuple[int, int]:
        """(k, d), the shape of a row's vectors; k is 1 where `pooled`."""
        return 1 if self.pooled else self.start.shape[1], self.output_size

    def forward(self, inputs: EncoderInput, means: ActivationMeans | RowActivations | None = None) -> Tensor:
        """Encodes B rows.

        Args:
            inputs: B rows; a row without a modality costs no pass of its backbone.
            means: if given, collects what the gates did.

        Returns:
            (B, k, d), or (B, d) where `pooled`; not normalised.
        """
        return self.recur(*self.backbone.states(inputs, self.plan), means)

    def recur(
        self, text: LayerStates, image: LayerStates, means: ActivationMeans | RowActivations | None = None
    ) -> Tensor:
        """The recurrence alone, on backbone states that are already computed, perhaps for other towers as well.

        Args:
            text: of the B rows, with the blocks of the tower's plan.
            image: of the same rows.
            means: as in `forward`.

        Returns:
            As `forward`.
        """
        state = self.start.expand(text.count, -1, -1)
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
    """Vectors of length 1 along the last axis, in float32 at least: what MaxSim and the index take."""
    return torch.nn.functional.normalize(vectors if vectors.dtype == torch.float64 else vectors.float(), dim=-1)

"""A tower: the recurrence over one pair of backbones, from an `EncoderInput` to k vectors a row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ret_lightning.inputs import EncoderInput
from ret_lightning.models.backbone import BlockStack
from ret_lightning.models.cell import RetCell
from ret_lightning.models.layers import LayerPlan
from ret_lightning.models.openings import OpeningMeans
from ret_lightning.models.states import ModalityStates


class RetTower(nn.Module):
    """One side of the retriever: queries, or passages.

    Args:
        text_backbone: states of texts; may be shared with the other tower.
        vision_backbone: states of images, likewise.
        plan: which blocks feed which step.
        cell: applied once a step.
        hidden_size: H, the width of the cell's state.
        output_size: d; a linear map without bias from H; 0: no map, d = H.
        pooled: average the k vectors of a row before the map: one vector a row.
    """

    def __init__(
        self,
        text_backbone: BlockStack,
        vision_backbone: BlockStack,
        plan: LayerPlan,
        cell: RetCell,
        hidden_size: int,
        output_size: int = 128,
        pooled: bool = False,
    ) -> None:
        super().__init__()
        self.plan = plan.check(text_backbone.num_blocks, vision_backbone.num_blocks)
        self.pooled = pooled
        self.text_backbone = text_backbone
        self.vision_backbone = vision_backbone
        self.text_adapters = nn.ModuleList(nn.Linear(text_backbone.width, hidden_size) for _ in plan.text)
        self.image_adapters = nn.ModuleList(nn.Linear(vision_backbone.width, hidden_size) for _ in plan.vision)
        self.cell = cell
        self.output = nn.Linear(hidden_size, output_size, bias=False) if output_size else nn.Identity()

    def forward(self, inputs: EncoderInput, means: OpeningMeans | None = None) -> Tensor:
        """Encodes B rows.

        Args:
            inputs: B rows; a row without a modality costs no pass of its backbone.
            means: if given, collects the mean opening of each gate.

        Returns:
            (B, k, d), or (B, d) where `pooled`; not normalised.
        """
        text = self.text_backbone(inputs.input_ids[inputs.text_rows], self.plan.text)
        image = self.vision_backbone(inputs.pixel_values, self.plan.vision)
        return self.recur(inputs, text, image, means)

    def recur(
        self, inputs: EncoderInput, text: Sequence[Tensor], image: Sequence[Tensor], means: OpeningMeans | None = None
    ) -> Tensor:
        """The recurrence alone, on backbone states that are already there.

        Args:
            inputs: the B rows.
            text: one (B_text, L, width) a step, of the rows that have a text.
            image: one (B_image, L', width) a step, of the rows that have an image.
            means: as in `forward`.
        """
        state = self.cell.initial_state(len(inputs))
        text_present = inputs.text_mask.to(state.dtype)[:, None, None]
        image_present = inputs.image_mask.to(state.dtype)[:, None, None]
        padding = ~inputs.attention_mask[inputs.text_rows]
        for step, (text_adapter, image_adapter) in enumerate(zip(self.text_adapters, self.image_adapters, strict=True)):
            state, openings = self.cell(
                state,
                ModalityStates(text_adapter(text[step]), inputs.text_rows, text_present, padding),
                ModalityStates(image_adapter(image[step]), inputs.image_rows, image_present),
            )
            if means is not None:
                means.add(step, openings, text_present, image_present)
        if self.pooled:
            state = state.mean(dim=1)
        return self.output(state)


def normalised(vectors: Tensor) -> Tensor:
    """Vectors of length 1 along the last axis, in float32 at least: what MaxSim and the index take."""
    return torch.nn.functional.normalize(vectors if vectors.dtype == torch.float64 else vectors.float(), dim=-1)

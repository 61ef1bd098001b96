"""A tower: the recurrence over one pair of backbones, from an `EncoderInput` to k vectors a row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ret_lightning.inputs import EncoderInput
from ret_lightning.models.backbones.base import Backbone, states_of
from ret_lightning.models.cell import RetCell
from ret_lightning.models.gate_activations import OpeningMeans, RowOpenings
from ret_lightning.models.layer_plans import LayerPlan
from ret_lightning.models.modality_states import ModalityStates
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
    def output_size(self) -> int:
        """d, the size of a vector."""
        return self.output.out_features if isinstance(self.output, nn.Linear) else self.cells[0].hidden_size

    @property
    def row_shape(self) -> tuple[int, int]:
        """(k, d), the shape of a row's vectors; k is 1 where `pooled`."""
        return 1 if self.pooled else self.start.shape[1], self.output_size

    def forward(self, inputs: EncoderInput, means: OpeningMeans | RowOpenings | None = None) -> Tensor:
        """Encodes B rows.

        Args:
            inputs: B rows; a row without a modality costs no pass of its backbone.
            means: if given, collects what the gates did.

        Returns:
            (B, k, d), or (B, d) where `pooled`; not normalised.
        """
        rows = inputs.text_rows
        text = states_of(self.text_backbone, inputs.input_ids[rows], self.plan.text, inputs.attention_mask[rows])
        image = states_of(self.vision_backbone, inputs.pixel_values, self.plan.vision)
        return self.recur(inputs, text, image, means)

    def recur(
        self,
        inputs: EncoderInput,
        text: Sequence[Tensor],
        image: Sequence[Tensor],
        means: OpeningMeans | RowOpenings | None = None,
    ) -> Tensor:
        """The recurrence alone, on backbone states that are already there.

        Args:
            inputs: the B rows.
            text: one (B_text, L, width) a step, of the rows that have a text.
            image: one (B_image, L', width) a step, of the rows that have an image.
            means: as in `forward`.
        """
        state = self.start.expand(len(inputs), -1, -1)
        text_present = inputs.text_mask.to(state.dtype)[:, None, None]
        image_present = inputs.image_mask.to(state.dtype)[:, None, None]
        padding = ~inputs.attention_mask[inputs.text_rows]
        for step, (text_adapter, image_adapter) in enumerate(zip(self.text_adapters, self.image_adapters, strict=True)):
            cell = self.cells[step % len(self.cells)]
            state, openings = cell(
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

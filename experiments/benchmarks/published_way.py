"""Reference implementation of encoding, as in the published code."""

from __future__ import annotations

import torch
from torch import Tensor

from ret_lightning.models import RetTower
from ret_lightning.models.layer_states import ModalityStates

# input_ids, attention_mask and pixel_values of all rows, and masks of the rows with text and with image.
Dense = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def always_both(tower: RetTower, dense: Dense, every_block: bool = True) -> Tensor:
    """Encode all rows with both backbones and both cross-attentions; masks remove missing modalities.

    Args:
        tower: with one cell.
        dense: B rows.
        every_block: whether to run also the blocks above the last one in the layer plan, as the published code does.

    Returns:
        (B, k, d) output of the tower.
    """
    ids, attention, pixels, has_text, has_image = dense
    states: list[list[Tensor]] = []
    for stack, inputs, blocks in (
        (tower.text_backbone, ids, tower.plan.text),
        (tower.vision_backbone, pixels, tower.plan.vision),
    ):
        computed = stack(inputs, range(stack.num_blocks if every_block else max(blocks) + 1))
        states.append([computed[block] for block in blocks])
    every_row = torch.arange(len(ids), device=ids.device)
    state, cell = tower.start.expand(len(ids), -1, -1), tower.cells[0]
    present = [mask.to(state.dtype)[:, None, None] for mask in (has_text, has_image)]
    for step, (text_adapter, image_adapter) in enumerate(zip(tower.text_adapters, tower.image_adapters, strict=True)):
        state, _ = cell(
            state,
            ModalityStates(text_adapter(states[0][step]), every_row, present[0], ~attention.bool()),
            ModalityStates(image_adapter(states[1][step]), every_row, present[1]),
        )
    return tower.output(state)

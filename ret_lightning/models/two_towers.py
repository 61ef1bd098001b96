"""Two towers over shared backbones: what a retriever computes, and all that checkpoints know of it."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from ret_lightning.inputs import EncoderInput
from ret_lightning.models.backbones.base import BlockStack, states_of
from ret_lightning.models.gate_activations import OpeningMeans
from ret_lightning.models.tower import RetTower, normalised


class TwoTowers(nn.Module):
    """A query tower and a passage tower; `RetRetriever` is what users work with.

    Args:
        query_tower: for queries.
        passage_tower: for passages; the same object as `query_tower` for one tower on both sides.
    """

    def __init__(self, query_tower: RetTower, passage_tower: RetTower) -> None:
        super().__init__()
        self.query_tower = query_tower
        self.passage_tower = passage_tower
        # Of the checkpoint that it was read from; saving keeps the fields that are not ours.
        self.stored_config: dict[str, Any] = {}

    def forward(
        self,
        queries: EncoderInput,
        passages: EncoderInput,
        query_means: OpeningMeans | None = None,
        passage_means: OpeningMeans | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Encodes a training batch; a backbone that both towers share runs once over the rows of both.

        Args:
            queries: B_q rows.
            passages: B_p rows.
            query_means: if given, collects the query tower's gate openings.
            passage_means: likewise.

        Returns:
            (B_q, k, d) and (B_p, k, d) vectors of length 1, float32; (B, d) where the towers pool.
        """
        towers, inputs = (self.query_tower, self.passage_tower), (queries, passages)
        length = max(x.input_ids.shape[1] for x in inputs)
        texts, masks = (
            [torch.nn.functional.pad(getattr(x, name)[x.text_rows], (0, length - x.input_ids.shape[1])) for x in inputs]
            for name in ("input_ids", "attention_mask")
        )
        text = _states([t.text_backbone for t in towers], texts, [t.plan.text for t in towers], masks)
        # A text padded to the other side's length has states to spare; the tower reads only its own.
        text = [[s[:, : x.input_ids.shape[1]] for s in states] for states, x in zip(text, inputs, strict=True)]
        images = [x.pixel_values for x in inputs]
        image = _states([t.vision_backbone for t in towers], images, [t.plan.vision for t in towers])
        query = self.query_tower.recur(queries, text[0], image[0], query_means)
        passage = self.passage_tower.recur(passages, text[1], image[1], passage_means)
        return normalised(query), normalised(passage)

    def encode(self, side: Literal["query", "passage"], inputs: EncoderInput) -> Tensor:
        """(B, k, d) vectors of length 1, float32, of one side; (B, 1, d) where the tower pools."""
        tower = self.query_tower if side == "query" else self.passage_tower
        vectors = normalised(tower(inputs))
        return vectors if vectors.dim() == 3 else vectors[:, None]


def _states(
    stacks: list[BlockStack],
    inputs: list[Tensor],
    blocks: list[tuple[int, ...]],
    masks: list[Tensor] | None = None,
) -> list[list[Tensor]]:
    """The states that each tower wants of its stack; two towers with one stack cost one pass over the rows of both."""
    if stacks[0] is not stacks[1]:
        parts = zip(stacks, inputs, blocks, masks or (None, None), strict=True)
        return [states_of(stack, x, b, mask) for stack, x, b, mask in parts]
    wanted = sorted({*blocks[0], *blocks[1]})
    mask = torch.cat(masks) if masks else None
    states = dict(zip(wanted, states_of(stacks[0], torch.cat(inputs), wanted, mask), strict=True))
    sizes = [len(x) for x in inputs]
    split = {block: state.split(sizes) for block, state in states.items()}
    return [[split[block][side] for block in blocks[side]] for side in range(2)]

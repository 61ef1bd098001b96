"""Two towers over shared backbones: what a retriever computes, and all that checkpoints know of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from ret_lightning.inputs import EncoderInput
from ret_lightning.models.backbones.base import BlockStack, image_states, text_states
from ret_lightning.models.gate_activations import ActivationMeans
from ret_lightning.models.layer_states import LayerStates
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
        query_means: ActivationMeans | None = None,
        passage_means: ActivationMeans | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Encodes a training batch; a backbone that both towers share runs once over the rows of both.

        Args:
            queries: B_q rows.
            passages: B_p rows.
            query_means: if given, collects the query tower's gate activations.
            passage_means: likewise.

        Returns:
            (B_q, k, d) and (B_p, k, d) vectors of length 1, float32; (B, d) where the towers pool.
        """
        towers, batches = (self.query_tower, self.passage_tower), (queries, passages)
        texts = _states_of_both(text_states, [t.text_backbone for t in towers], batches, [t.plan.text for t in towers])
        images = _states_of_both(
            image_states, [t.vision_backbone for t in towers], batches, [t.plan.vision for t in towers]
        )
        query = self.query_tower.recur(texts[0], images[0], query_means)
        passage = self.passage_tower.recur(texts[1], images[1], passage_means)
        return normalised(query), normalised(passage)

    def encode(self, side: Literal["query", "passage"], inputs: EncoderInput) -> Tensor:
        """(B, k, d) vectors of length 1, float32, of one side; (B, 1, d) where the tower pools."""
        tower = self.query_tower if side == "query" else self.passage_tower
        vectors = normalised(tower(inputs))
        return vectors if vectors.dim() == 3 else vectors[:, None]


def _states_of_both(
    states: Callable[[BlockStack, Sequence[EncoderInput], Iterable[int]], list[LayerStates]],
    stacks: Sequence[BlockStack],
    batches: Sequence[EncoderInput],
    blocks: Sequence[Sequence[int]],
) -> list[LayerStates]:
    """The states that each tower reads of its batch; a stack that both towers have runs once over the rows of both."""
    if stacks[0] is stacks[1]:
        return states(stacks[0], batches, [*blocks[0], *blocks[1]])
    return [states(stack, [batch], own)[0] for stack, batch, own in zip(stacks, batches, blocks, strict=True)]

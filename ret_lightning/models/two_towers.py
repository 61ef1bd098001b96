"""Two towers over shared backbones: the part of a retriever that checkpoints describe.

Shape legend: B rows, k vectors per row, d output size.
"""

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
    """A query tower and a passage tower, without the methods for loading, saving and encoding of `RetRetriever`.

    Args:
        query_tower: Encodes queries.
        passage_tower: Encodes passages. Pass the same object as `query_tower` to share one tower.

    Attributes:
        stored_config: The `config.json` of the checkpoint that the model was loaded from; empty for a new model.
    """

    def __init__(self, query_tower: RetTower, passage_tower: RetTower) -> None:
        super().__init__()
        self.query_tower = query_tower
        self.passage_tower = passage_tower
        # Saving keeps the fields that this project does not define.
        self.stored_config: dict[str, Any] = {}

    def forward(
        self,
        queries: EncoderInput,
        passages: EncoderInput,
        query_means: ActivationMeans | None = None,
        passage_means: ActivationMeans | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Encode a training batch. A backbone that both towers share runs once over the rows of both sides.

        Args:
            queries: B_q rows.
            passages: B_p rows.
            query_means: Collects the gate activations of the query tower, if given.
            passage_means: Collects the gate activations of the passage tower, if given.

        Returns:
            L2-normalised query vectors (B_q, k, d) and passage vectors (B_p, k, d), at least float32; (B, d) if the towers
            are pooled.
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
        """Encode a batch with the tower of one side.

        Args:
            side: `query` or `passage`.
            inputs: B rows.

        Returns:
            (B, k, d) L2-normalised vectors, at least float32; (B, 1, d) if the tower is pooled.
        """
        tower = self.query_tower if side == "query" else self.passage_tower
        vectors = normalised(tower(inputs))
        return vectors if vectors.dim() == 3 else vectors[:, None]


def _states_of_both(
    states: Callable[[BlockStack, Sequence[EncoderInput], Iterable[int]], list[LayerStates]],
    stacks: Sequence[BlockStack],
    batches: Sequence[EncoderInput],
    blocks: Sequence[Sequence[int]],
) -> list[LayerStates]:
    """Compute the states that each tower reads of its batch, with one pass over both batches if they share the stack."""
    if stacks[0] is stacks[1]:
        return states(stacks[0], batches, [*blocks[0], *blocks[1]])
    return [states(stack, [batch], own)[0] for stack, batch, own in zip(stacks, batches, blocks, strict=True)]

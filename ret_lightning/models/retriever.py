"""The retriever: a query tower and a passage tower over shared backbones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ret_lightning.errors import ConfigError
from ret_lightning.inputs import EncoderInput
from ret_lightning.models.backbone import Backbone, BlockStack
from ret_lightning.models.cell import RetCell
from ret_lightning.models.gates import Gate
from ret_lightning.models.layers import Published, Recurrence
from ret_lightning.models.openings import OpeningMeans
from ret_lightning.models.tower import RetTower, normalised


class RetRetriever(nn.Module):
    """Encodes queries and passages; scores are MaxSim of what it gives.

    Args:
        query_tower: for queries.
        passage_tower: for passages; the same object as `query_tower` for one tower on both sides.
    """

    def __init__(self, query_tower: RetTower, passage_tower: RetTower) -> None:
        super().__init__()
        self.query_tower = query_tower
        self.passage_tower = passage_tower

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
        texts = [x.input_ids[x.text_rows] for x in inputs]
        length = max(t.shape[1] for t in texts)
        texts = [torch.nn.functional.pad(t, (0, length - t.shape[1])) for t in texts]
        text = _states([t.text_backbone for t in towers], texts, [t.plan.text for t in towers])
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

    @classmethod
    def from_pretrained(cls, source: str | Path) -> RetRetriever:
        """A retriever from a folder or hub id in the published layout; see models/checkpoint.py."""
        from ret_lightning.models.checkpoint import load_published

        return load_published(source)


def build_retriever(
    backbone: Backbone,
    gate: Callable[[int], Gate],
    recurrence: Recurrence | None = None,
    num_tokens: int = 32,
    hidden_size: int = 1024,
    num_heads: int | None = None,
    intermediate_size: int | None = None,
    output_size: int = 128,
    pooled: bool = False,
    dropout: float = 0.05,
    attention_dropout: float = 0.05,
    activation: Literal["gelu", "relu"] = "gelu",
    share_towers: bool = False,
    train_text: bool = False,
    train_vision: bool = False,
) -> RetRetriever:
    """A retriever of new towers over a backbone.

    Args:
        backbone: shared by both towers.
        gate: makes a gate from a width H; called once a tower.
        recurrence: which blocks feed which step; None: the plan published for the backbone.
        num_tokens: k, vectors a row.
        hidden_size: H, the width of the state.
        num_heads: of the attentions; None: one for each 64 of H.
        intermediate_size: of the MLP; None: 4 H.
        output_size: d; 0: no output map, d = H.
        pooled: one vector a row (the mean of the k) instead of k.
        dropout: in the MLP.
        attention_dropout: of the attention weights.
        activation: of the MLP.
        share_towers: one tower for queries and passages.
        train_text: whether the text backbone is trained; frozen otherwise.
        train_vision: likewise.
    """
    plan = (recurrence or Published()).plan(
        backbone.text.num_blocks, backbone.vision.num_blocks, backbone.published_plan
    )
    backbone.text.freeze(not train_text, max(plan.text))
    backbone.vision.freeze(not train_vision, max(plan.vision))
    if num_heads is None and hidden_size % 64:
        raise ConfigError(
            f"model.hidden_size={hidden_size} is not a multiple of 64, so the number of heads has no default: "
            f"set model.num_heads to a divisor of {hidden_size}"
        )

    def tower() -> RetTower:
        cell = RetCell(
            gate=gate(hidden_size),
            hidden_size=hidden_size,
            num_tokens=num_tokens,
            num_heads=num_heads or hidden_size // 64,
            intermediate_size=intermediate_size or 4 * hidden_size,
            dropout=dropout,
            attention_dropout=attention_dropout,
            activation=activation,
        )
        return RetTower(backbone.text, backbone.vision, plan, cell, hidden_size, output_size, pooled)

    query_tower = tower()
    return RetRetriever(query_tower, query_tower if share_towers else tower())


def _states(stacks: list[BlockStack], inputs: list[Tensor], blocks: list[tuple[int, ...]]) -> list[list[Tensor]]:
    """The states that each tower wants of its stack; two towers with one stack cost one pass over the rows of both."""
    if stacks[0] is not stacks[1]:
        return [stack(x, b) for stack, x, b in zip(stacks, inputs, blocks, strict=True)]
    wanted = sorted({*blocks[0], *blocks[1]})
    states = dict(zip(wanted, stacks[0](torch.cat(inputs), wanted), strict=True))
    sizes = [len(x) for x in inputs]
    split = {block: state.split(sizes) for block, state in states.items()}
    return [[split[block][side] for block in blocks[side]] for side in range(2)]

"""A counter of the rows and blocks that the backbones of a retriever process."""

from __future__ import annotations

from ret_lightning.models import RetRetriever


class Counter:
    """Counts the rows that enter each stack and the blocks that run."""

    def __init__(self, retriever: RetRetriever) -> None:
        self.rows: dict[str, list[int]] = {"text": [], "vision": []}
        self.blocks: list[int] = []
        tower = retriever.query_tower
        for name, stack in (("text", tower.text_backbone), ("vision", tower.vision_backbone)):
            stack.register_forward_pre_hook(lambda _, args, name=name: self.rows[name].append(len(args[0])))
        for index, layer in enumerate(tower.vision_backbone.model.encoder.layers):
            layer.register_forward_pre_hook(lambda *_, index=index: self.blocks.append(index))

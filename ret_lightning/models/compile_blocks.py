"""`torch.compile` of the parts of a retriever that repeat: the cell, and the blocks of the backbones."""

from __future__ import annotations

from typing import Any

from torch import nn

from ret_lightning.models.retriever import RetRetriever


def compile_blocks(retriever: RetRetriever, **options: Any) -> None:
    """Compiles the cells and the backbones' blocks in place; names, weights and results stay (to rounding).

    Blocks instead of the whole towers: one of a kind is compiled once and serves all that look like it, and the rows that
    have a modality are picked out in between, where their number would be compiled anew each time.

    Args:
        retriever: of any architecture.
        options: of `torch.compile`.
    """
    towers = (retriever.query_tower, retriever.passage_tower)
    modules: list[nn.Module] = [cell for tower in towers for cell in tower.cells]
    modules += [
        stack.block(index)
        for tower in towers
        for stack in (tower.text_backbone, tower.vision_backbone)
        for index in range(stack.num_blocks)
    ]
    for module in {id(module): module for module in modules}.values():
        module.compile(dynamic=True, **options)

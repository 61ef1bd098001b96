"""`torch.compile` for the repeated modules of a retriever: the cells and the blocks of the backbones."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from ret_lightning.models.retriever import RetRetriever

# Graphs per function, after which torch.compile silently runs a function without compiling it. All kinds of inputs need fewer:
# training or inference, one row or several, text or image, each width and each part of the weights that is trained.
RECOMPILE_LIMIT = 64


def compile_blocks(retriever: RetRetriever, **options: Any) -> None:
    """Compile the cells and the backbone blocks in place. Names and weights are unchanged, results agree up to rounding.

    Compiling blocks and the parts of the cells instead of whole towers has two advantages: identical blocks share one
    compilation, and the selection of rows that have a modality, whose number varies, stays outside the compiled graphs.

    Args:
        retriever: A retriever of any architecture.
        options: Keyword arguments of `torch.compile`.
    """
    towers = (retriever.query_tower, retriever.passage_tower)
    modules: list[nn.Module] = [cell for tower in towers for cell in tower.cells]
    modules += [
        stack.block(index)
        for tower in towers
        for stack in (tower.text_backbone, tower.vision_backbone)
        for index in range(stack.num_blocks)
    ]
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        options = {"recompile_limit": RECOMPILE_LIMIT, **options}
    else:  # earlier versions of PyTorch have one limit for all functions
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
    for module in {id(module): module for module in modules}.values():
        module.compile(dynamic=True, **options)

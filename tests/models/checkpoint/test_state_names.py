"""The mapping between tensor names in published checkpoints and in this project."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ret_lightning import RetRetriever
from ret_lightning.models.checkpoint.state_names import load_published_state, published_name, published_state
from tests.support.checkpoint_folders import tensors
from tests.support.tiny_models import BY_NAME, assert_same_function


@pytest.mark.parametrize(
    ("ours", "cells", "published"),
    [
        ("start", 1, "ret_cell.query_hidden_states"),
        ("text_adapters.3.weight", 1, "text_adapter.3.weight"),
        ("image_adapters.0.bias", 1, "vision_adapter.0.bias"),
        ("output.weight", 1, "late_proj.weight"),
        ("cells.0.self_attention.in_proj_weight", 1, "ret_cell.sa.in_proj_weight"),
        ("cells.0.gate.text_input.weight", 1, "ret_cell.text_input_gate_w.weight"),
        ("cells.1.image_norm.weight", 2, "ret_cells.1.vision_ln.weight"),
        ("cells.0.mlp.0.weight", 1, "ret_cell.mlp.0.weight"),
    ],
)
def test_published_names_of_tensors(ours: str, cells: int, published: str) -> None:
    assert published_name(ours, cells) == published


@pytest.mark.parametrize("name", ["untied_backbones", "two_kinds_of_tower", "clip_vit_b_pooled_shared"])
def test_published_state_matches_file(name: str) -> None:
    state, stored = published_state(RetRetriever.from_pretrained(BY_NAME[name])), tensors(BY_NAME[name])
    assert state.keys() == stored.keys()
    assert all(torch.equal(state[tensor], stored[tensor]) for tensor in stored)


@pytest.mark.parametrize("options", [{}, {"share_towers": True}, {"cell_per_step": True}], ids=["", "shared", "cells"])
def test_loaded_state_is_not_copied(make_retriever: Callable[..., RetRetriever], options: dict) -> None:
    source, target = make_retriever(**options).eval(), make_retriever(**options).eval()
    state = {name: tensor.clone() for name, tensor in published_state(source).items()}
    load_published_state(target, state)
    assert_same_function(target, source)
    assert target.query_tower.start.data_ptr() == state["query_model.ret_cell.query_hidden_states"].data_ptr()

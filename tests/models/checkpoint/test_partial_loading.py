"""Partial loading: tensors that fit are loaded, the others are listed and unchanged."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from ret_lightning import RetRetriever
from ret_lightning.models import build_retriever
from ret_lightning.models.backbones.clip_transformers import clip_backbone
from ret_lightning.models.checkpoint.partial_loading import load_fitting_weights
from ret_lightning.models.checkpoint.state_names import published_state
from ret_lightning.models.gates import CoupledGate, LSTMGate
from ret_lightning.models.layer_plans import Explicit
from tests.support.tiny_models import TEXT, VISION

Make = Callable[..., RetRetriever]
BOTH = ("query_model", "passage_model")


def _on_both(*names: str) -> set[str]:
    return {f"{side}.{name}" for side in BOTH for name in names}


INPUT_GATES = ("ret_cell.text_input_gate_w", "ret_cell.vision_input_gate_w")
CASES = {
    "same architecture": ({}, {}, set(), set()),
    "another gate": ({}, {"gate": CoupledGate}, set(), _on_both(*INPUT_GATES)),
    "another gate, reversed": ({"gate": CoupledGate}, {}, _on_both(*INPUT_GATES), set()),
    "other priors": ({}, {"gate": partial(LSTMGate, forget_bias=1.0)}, set(), set()),
    "fewer tokens": (
        {"num_tokens": 6},
        {},
        _on_both("ret_cell.query_hidden_states (1, 4, 32), in the checkpoint (1, 6, 32)"),
        _on_both("ret_cell.query_hidden_states"),
    ),
    "another block in the second step": (
        {"recurrence": Explicit([0, 1, 3], [0, 1, 2])},
        {"recurrence": Explicit([0, 2], [0, 1])},
        _on_both("text_adapter.1"),
        _on_both("text_adapter.1", "text_adapter.2", "vision_adapter.2"),
    ),
    "no output map": ({}, {"output_size": 0}, set(), _on_both("late_proj.weight")),
    "one tower into two": ({"share_towers": True}, {}, set(), set()),
    "two towers into one": ({}, {"share_towers": True}, set(), {"passage_model"}),
    "one cell into two": ({"share_cells": True}, {}, set(), set()),
    "another text backbone": (
        {"text": {**TEXT, "hidden_size": 32}},
        {},
        {"query_model.text_model", *_on_both("text_adapter")},
        {"query_model.text_model", *_on_both("text_adapter")},
    ),
}


@pytest.mark.parametrize(("source", "target", "initialised", "unused"), CASES.values(), ids=CASES.keys())
def test_fitting_weights_are_loaded(
    make_retriever: Make, source: dict, target: dict, initialised: set, unused: set
) -> None:
    theirs, ours = _make_sized(make_retriever, **source), _make_sized(make_retriever, **target)
    before = {name: tensor.clone() for name, tensor in published_state(ours).items()}
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(1.0)
    state = published_state(theirs)
    cell = ours.query_tower.cells[0]
    settings = [cell.gate.forget_bias.clone(), cell.positions.clone()]

    done = load_fitting_weights(ours, theirs)

    assert (set(done.initialised), set(done.unused)) == (initialised, unused)
    kept = tuple(name.partition(" ")[0] for name in done.initialised)
    for name, tensor in published_state(ours).items():
        if name.startswith(kept):
            assert torch.equal(tensor, before[name]), name
        elif tensor.dim() and "query_state_ids" not in name:
            there = name if name in state else name.replace("passage_model", "query_model", 1)
            assert torch.equal(tensor, state[there]), name
    assert all(map(torch.equal, settings, [cell.gate.forget_bias, cell.positions]))


def test_no_weights_fit(make_retriever: Make) -> None:
    other = _make_sized(make_retriever, {**TEXT, "hidden_size": 8}, {**VISION, "hidden_size": 16}, 2, hidden_size=16)
    done = load_fitting_weights(make_retriever(), other)
    assert done.loaded == 0
    assert done.initialised == done.unused == BOTH


def _make_sized(
    make: Make, text: dict | None = None, vision: dict | None = None, num_tokens: int = 4, **options
) -> RetRetriever:
    if text is None and vision is None:
        return make(num_tokens=num_tokens, **options)
    sizes = {"hidden_size": 32, "num_heads": 2, "output_size": 8, **options}
    return build_retriever(
        clip_backbone(text=text or TEXT, vision=vision or VISION), LSTMGate, num_tokens=num_tokens, **sizes
    )

"""Layer states: one backbone pass for several towers, and the states of a step."""

from __future__ import annotations

import pytest
import torch

from ret_lightning import RetRetriever
from ret_lightning.errors import ConfigError
from ret_lightning.models import LayerPlan, RetTower
from ret_lightning.models.layer_states import ModalityStates
from tests.support.backbone_counter import Counter
from tests.support.tiny_models import batch

ROWS = batch([1, 0, 1, 1], [0, 1, 1, 0])


@pytest.fixture
def retriever(make_retriever) -> RetRetriever:
    """Return two towers with different plans over shared trained backbones; the passage tower reads a block twice."""
    retriever = make_retriever(train_text=True, train_vision=True).eval()
    query = retriever.query_tower
    other = RetTower(query.backbone, LayerPlan((3, 3, 1), (0, 4, 4)), retriever.passage_tower.cells, 8)
    retriever.passage_tower = other.eval()
    for name, stack in (("text", query.text_backbone), ("vision", query.vision_backbone)):
        stack.set_trained(True, max(getattr(query.plan, name) + getattr(other.plan, name)))
    return retriever


def test_two_towers_share_one_pass(retriever: RetRetriever) -> None:
    query, passage = retriever.query_tower, retriever.passage_tower
    separate = query(ROWS), passage(ROWS)
    gradients = torch.autograd.grad(sum(x.square().sum() for x in separate), query.text_backbone.embedding_parameters())
    counter = Counter(retriever)
    states = query.backbone.states(ROWS, query.plan, passage.plan)
    together = query.recur(*states), passage.recur(*states)
    assert counter.rows == {"text": [3], "vision": [2]}
    assert counter.blocks == [0, 1, 2, 3, 4]
    for one, other in zip(together, separate, strict=True):
        assert torch.equal(one, other)
    ours = torch.autograd.grad(sum(x.square().sum() for x in together), query.text_backbone.embedding_parameters())
    for gradient, expected in zip(ours, gradients, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)


def test_states_cover_rows_with_modality(retriever: RetRetriever) -> None:
    tower = retriever.query_tower
    text, image = tower.backbone.states(ROWS, tower.plan)
    assert (text.rows.tolist(), image.rows.tolist(), text.count, image.count) == ([0, 2, 3], [1, 2], 4, 4)
    assert set(text.blocks) == set(tower.plan.text)
    assert set(image.blocks) == set(tower.plan.vision)
    assert torch.equal(text.padding, ~ROWS.attention_mask[[0, 2, 3]])
    assert image.padding is None
    assert image.present(torch.float64).flatten().tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("trained", [False, True])
def test_states_of_frozen_backbone_have_no_gradient(make_retriever, trained: bool) -> None:
    tower = make_retriever(train_text=trained, train_vision=trained).query_tower
    for states in tower.backbone.states(ROWS, tower.plan):
        assert {state.requires_grad for state in states.blocks.values()} == {trained}


def test_missing_block_is_reported(retriever: RetRetriever) -> None:
    states = retriever.query_tower.backbone.states(ROWS, LayerPlan((3, 1), (0, 2)))
    with pytest.raises(ConfigError) as raised:
        retriever.passage_tower.recur(*states)
    assert (raised.value.code, raised.value.found, raised.value.allowed) == ("layer-states-missing", 4, (0, 2))


@pytest.mark.parametrize(("rows", "complete"), [([0, 1, 2], True), ([0, 2], False), ([], False)])
def test_is_complete_if_every_row_has_modality(rows: list[int], complete: bool) -> None:
    present = torch.zeros(3, 1, 1)
    present[rows] = 1
    states = ModalityStates(torch.randn(len(rows), 5, 4), torch.tensor(rows, dtype=torch.int64), present)
    assert states.is_complete is complete

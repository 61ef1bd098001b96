"""The retriever: missing modalities, shared backbones, frozen and trained parts."""

from __future__ import annotations

import pytest
import torch

from ret_lightning.errors import ConfigError
from ret_lightning.models import BlockStack
from ret_lightning.models.layer_plans import Explicit
from tests.support.tiny_models import batch


@pytest.mark.parametrize("has_image", [[1, 1, 1], [1, 0, 1], [0, 0, 0]])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_trained_parameters_get_gradients(make_retriever, has_image, trained, shared) -> None:
    retriever = make_retriever(
        share_towers=shared, train_text=trained, train_vision=trained, recurrence=Explicit([0, 1], [0, 2])
    )
    query, passage = retriever.train()(batch([1, 1, 0], has_image), batch([1, 1, 1], has_image, seed=1))
    (query[:, :, None] * passage[:, None]).square().sum().backward()
    missing = [name for name, p in retriever.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    if any(has_image):
        dead = [n for n, p in retriever.named_parameters() if p.requires_grad and not p.grad.abs().sum() > 0]
        # The bias of the keys shifts all logits of a softmax equally, so its gradient is rounding or zero.
        assert [n for n in dead if "k_proj.bias" not in n] == []


def test_frozen_backbones_stay_in_eval_mode(make_retriever) -> None:
    retriever = make_retriever().train()
    stacks = [m for m in retriever.modules() if isinstance(m, BlockStack)]
    assert len(stacks) == 2
    assert not any(m.training for stack in stacks for m in stack.modules())
    assert retriever.query_tower.cells[0].training
    assert not any(p.requires_grad for stack in stacks for p in stack.parameters())
    states = stacks[0](torch.ones(2, 3, dtype=torch.int64), [0, 1])
    assert all(s.grad_fn is None for s in states)


def test_unused_blocks_are_not_trained(make_retriever) -> None:
    retriever = make_retriever(train_vision=True, recurrence=Explicit([0], [2]))
    trained = {n for n, p in retriever.query_tower.vision_backbone.named_parameters() if p.requires_grad}
    assert any("embeddings" in n for n in trained)
    assert any("layers.2." in n for n in trained)
    assert not any("layers.3." in n or "post_layernorm" in n for n in trained)


def test_output_shapes_of_towers(make_retriever) -> None:
    one, two = make_retriever(share_towers=True), make_retriever()
    assert one.query_tower is one.passage_tower
    assert two.query_tower is not two.passage_tower
    assert two.query_tower.text_backbone is two.passage_tower.text_backbone
    assert two.query_tower(batch([1], [1])).shape == (1, 4, 8)
    pooled = make_retriever(pooled=True)
    assert pooled.query_tower(batch([1], [1])).shape == (1, 8)
    assert pooled.encode("query", batch([1], [1])).shape == (1, 1, 8)
    assert make_retriever(output_size=0).query_tower(batch([1], [1])).shape == (1, 4, 32)


def test_hidden_size_without_default_heads_is_refused(make_retriever) -> None:
    with pytest.raises(ConfigError) as error:
        make_retriever(hidden_size=40, num_heads=None)
    assert (error.value.code, error.value.found) == ("heads-without-default", 40)

"""Towers and retriever: missing modalities, shared backbones, frozen and trainable parts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from ret_lightning.errors import ConfigError, UserError
from ret_lightning.models import BlockStack, EncoderInput, OpeningMeans, RetRetriever
from ret_lightning.models.backbones.clip_transformers import clip_backbone
from ret_lightning.models.layer_plans import Explicit, Last
from tests.support.tiny_models import TEXT, VISION, batch


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


def test_a_row_without_a_modality_costs_no_pass_and_does_not_see_the_other_rows_inputs(make_retriever) -> None:
    tower = make_retriever().eval().query_tower
    has_text, has_image = [1, 0, 1, 1], [0, 1, 1, 0]
    together = tower(batch(has_text, has_image))
    for row in range(4):
        whole = batch(has_text, has_image)
        keep = [row]
        alone = EncoderInput.dense(
            whole.input_ids[keep],
            whole.attention_mask[keep],
            batch([1] * 4, [1] * 4).pixel_values[keep],
            torch.tensor([has_text[row]]),
            torch.tensor([has_image[row]]),
        )
        torch.testing.assert_close(tower(alone)[0], together[row], rtol=1e-5, atol=1e-5)


def test_shared_backbones_run_once_over_the_rows_of_both_sides_that_have_the_modality(make_retriever) -> None:
    retriever = make_retriever().eval()
    counter = Counter(retriever)
    retriever(batch([1, 0, 1], [1, 1, 0]), batch([1, 1, 1], [0, 0, 1], length=5, seed=1))
    assert counter.rows == {"text": [2 + 3], "vision": [2 + 1]}


def test_blocks_above_the_last_one_used_do_not_run(make_retriever) -> None:
    retriever = make_retriever(recurrence=Explicit([0, 1], [0, 2])).eval()
    counter = Counter(retriever)
    retriever.query_tower(batch([1], [1]))
    assert counter.blocks == [0, 1, 2]


def test_forward_is_both_towers_normalised(make_retriever) -> None:
    retriever = make_retriever().eval()
    queries, passages = batch([1, 0, 1], [1, 1, 0]), batch([1, 1], [0, 1], length=5, seed=1)
    query, passage = retriever(queries, passages)
    for got, tower, rows in ((query, retriever.query_tower, queries), (passage, retriever.passage_tower, passages)):
        alone = tower(rows)
        torch.testing.assert_close(got, alone / alone.norm(dim=-1, keepdim=True), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(retriever.encode("query", queries), query, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("has_image", [[1, 1, 1], [1, 0, 1], [0, 0, 0]])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_every_trainable_parameter_gets_a_gradient(make_retriever, has_image, trained, shared) -> None:
    retriever = make_retriever(
        share_towers=shared, train_text=trained, train_vision=trained, recurrence=Explicit([0, 1], [0, 2])
    )
    query, passage = retriever.train()(batch([1, 1, 0], has_image), batch([1, 1, 1], has_image, seed=1))
    (query[:, :, None] * passage[:, None]).square().sum().backward()
    missing = [name for name, p in retriever.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    if any(has_image):
        dead = [n for n, p in retriever.named_parameters() if p.requires_grad and not p.grad.abs().sum() > 0]
        # A key's bias shifts all logits of a softmax alike, so its gradient is rounding or nothing.
        assert [n for n in dead if "k_proj.bias" not in n] == []


def test_frozen_backbones_stay_in_eval_mode_without_gradients_or_activations(make_retriever) -> None:
    retriever = make_retriever().train()
    stacks = [m for m in retriever.modules() if isinstance(m, BlockStack)]
    assert len(stacks) == 2
    assert not any(m.training for stack in stacks for m in stack.modules())
    assert retriever.query_tower.cells[0].training
    assert not any(p.requires_grad for stack in stacks for p in stack.parameters())
    states = stacks[0](torch.ones(2, 3, dtype=torch.int64), [0, 1])
    assert all(s.grad_fn is None for s in states)


def test_a_trained_backbone_trains_what_is_used_and_nothing_above(make_retriever) -> None:
    retriever = make_retriever(train_vision=True, recurrence=Explicit([0], [2]))
    trained = {n for n, p in retriever.query_tower.vision_backbone.named_parameters() if p.requires_grad}
    assert any("embeddings" in n for n in trained)
    assert any("layers.2." in n for n in trained)
    assert not any("layers.3." in n or "post_layernorm" in n for n in trained)


def test_one_tower_or_two_and_pooled_or_late(make_retriever) -> None:
    one, two = make_retriever(share_towers=True), make_retriever()
    assert one.query_tower is one.passage_tower
    assert two.query_tower is not two.passage_tower
    assert two.query_tower.text_backbone is two.passage_tower.text_backbone
    assert two.query_tower(batch([1], [1])).shape == (1, 4, 8)
    pooled = make_retriever(pooled=True)
    assert pooled.query_tower(batch([1], [1])).shape == (1, 8)
    assert pooled.encode("query", batch([1], [1])).shape == (1, 1, 8)
    assert make_retriever(output_size=0).query_tower(batch([1], [1])).shape == (1, 4, 32)


def test_means_of_openings_count_rows_that_have_the_modality(make_retriever) -> None:
    retriever = make_retriever(recurrence=Last()).eval()
    means = OpeningMeans()
    rows = batch([1, 0, 1], [0, 0, 1])
    retriever.query_tower(rows, means)
    cell = retriever.query_tower.cells[0]
    seen = []
    cell.register_forward_hook(lambda _, __, out: seen.append(out[1]))
    retriever.query_tower(rows)
    (openings,) = seen
    assert set(means.means()) == {(0, "forget"), (0, "text"), (0, "image")}
    assert means.means()[0, "text"].item() == pytest.approx(openings.text[[0, 2]].mean().item(), abs=1e-6)
    assert means.means()[0, "image"].item() == pytest.approx(openings.image[[2]].mean().item(), abs=1e-6)
    assert means.means()[0, "forget"].item() == pytest.approx(openings.forget.mean().item(), abs=1e-6)


def test_sizes_without_a_default_number_of_heads(make_retriever) -> None:
    with pytest.raises(ConfigError, match=r"model\.hidden_size=40 is not a multiple of 64"):
        make_retriever(hidden_size=40, num_heads=None)


def test_a_pretrained_backbone_must_be_what_the_config_describes(tmp_path: Path) -> None:
    """A run is opened again by its config alone, which would otherwise build another model than the one that was trained."""
    config = CLIPConfig(text_config={**TEXT, "hidden_act": "gelu"}, vision_config={**VISION, "hidden_act": "gelu"})
    model, folder = CLIPModel(config), tmp_path / "clip"
    model.save_pretrained(folder)
    described = {"text": {**TEXT, "hidden_act": "gelu"}, "vision": {**VISION, "hidden_act": "gelu"}}
    backbone = clip_backbone(**described, pretrained=str(folder))
    tokens = model.text_model.embeddings.token_embedding.weight
    assert torch.equal(backbone.text.layout_state()["text_model.embeddings.token_embedding.weight"], tokens)
    assert backbone.text.source == str(folder)
    described["vision"]["hidden_act"] = "quick_gelu"
    with pytest.raises(
        ConfigError,
        match=r"hidden_act of its clip_vision_model is gelu, and the config says quick_gelu; set backbone\.vision\.",
    ):
        clip_backbone(**described, pretrained=str(folder))
    with pytest.raises(UserError, match=r"backbone\.pretrained=/nowhere/clip: there is no such folder"):
        clip_backbone(pretrained="/nowhere/clip")

"""From a checkpoint's config.json to a retriever: what is read, the defaults, and errors that name file and field."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ret_lightning import RetRetriever
from ret_lightning.errors import UserError
from tests.support.checkpoint_folders import edit_config
from tests.support.tiny_models import BY_NAME


def test_what_the_config_says_is_in_the_model() -> None:
    two = RetRetriever.from_pretrained(BY_NAME["two_kinds_of_tower"])
    assert two.query_tower.text_backbone is two.passage_tower.text_backbone
    assert two.query_tower.plan.vision == tuple(range(0, 24, 2))
    assert two.passage_tower.plan.vision == tuple(range(12))
    assert (two.query_tower.pooled, two.passage_tower.pooled) == (False, True)
    untied = RetRetriever.from_pretrained(BY_NAME["untied_backbones"])
    assert untied.query_tower.text_backbone is not untied.passage_tower.text_backbone
    assert (untied.query_tower.image_transform.size, untied.passage_tower.image_transform.size) == (32, 24)
    trained = RetRetriever.from_pretrained(BY_NAME["no_map_int_priors"])
    stacks = trained.query_tower.text_backbone, trained.query_tower.vision_backbone
    assert [any(p.requires_grad for p in stack.parameters()) for stack in stacks] == [True, False]
    assert not trained.training
    one = RetRetriever.from_pretrained(BY_NAME["clip_vit_b_pooled_shared"])
    assert one.query_tower is one.passage_tower


def test_a_shared_backbone_has_gradients_up_to_the_last_block_that_either_tower_uses(copy) -> None:
    folder = copy("two_kinds_of_tower")  # the query tower uses vision block 22, the passage tower block 11
    edit_config(folder, lambda c: [c[f"{s}_config"].update(is_vision_frozen=False) for s in ("query", "passage")])
    stack = RetRetriever.from_pretrained(folder).query_tower.vision_backbone
    trained = [all(p.requires_grad for p in stack.block(i).parameters()) for i in range(24)]
    assert trained == [True] * 23 + [False]


def test_fields_without_a_value_have_the_published_defaults(copy) -> None:
    folder = copy("clip_vit_b_relu_tanh_priors")
    silent = ("layer_strategy", "is_text_frozen", "dropout_p", "use_pooler_features", "num_attention_heads")
    edit_config(folder, lambda c: [c["query_config"].pop(field) for field in silent])
    edit_config(folder, lambda c: c.pop("share_text_models"))
    retriever = RetRetriever.from_pretrained(folder)
    assert retriever.query_tower.cells[0].dropout == 0.05
    assert_same = RetRetriever.from_pretrained(BY_NAME["clip_vit_b_relu_tanh_priors"])
    assert all(torch.equal(a, b) for a, b in zip(retriever.parameters(), assert_same.parameters(), strict=True))


def test_of_a_shared_backbone_the_query_side_says_what_is_trained(copy) -> None:
    folder = copy("clip_vit_l")
    edit_config(folder, lambda c: c["query_config"].update(is_text_frozen=True, is_vision_frozen=False))
    edit_config(folder, lambda c: c["passage_config"].update(is_text_frozen=False, is_vision_frozen=True))
    tower = RetRetriever.from_pretrained(folder).query_tower
    assert (tower.text_backbone.trained, tower.vision_backbone.trained) == (False, True)


def no_field(name: str) -> Callable[[dict], object]:
    return lambda config: config["query_config"].pop(name)


def field(name: str, value: object) -> Callable[[dict], object]:
    return lambda config: config["query_config"].update({name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("query_config"), r"config\.json: field query_config is missing; is this the config of a ReT model\?"),
        (no_field("vision_config"), r"field query_config\.vision_config is missing"),
        (field("hidden_size", "64"), r"field query_config\.hidden_size is '64', which is no int"),
        (field("use_tanh", 1), r"field query_config\.use_tanh is 1, which is no bool"),
        (field("num_queries", True), r"field query_config\.num_queries is True, which is no int"),
        (field("layer_strategy", "clip_vit_x"), r"field query_config\.layer_strategy is 'clip_vit_x', which is unknown; "),
        (field("layer_strategy", "openclip_vit_g"), r"query_config: recurrence: text blocks .* do not exist"),
        (field("activation_fn", "swish"), r"field query_config\.activation_fn is 'swish', which is unknown; known: gelu, relu"),
        (field("num_attention_heads", 5), r"query_config: .*hidden_size=128 is not divisible by .*num_heads=5"),
        (field("ret_lightning", {"gate": "lsmt"}), r"query_config.*lsmt.*import the module.*lstm"),
        (field("ret_lightning", {"layers": [1, 2]}), r"query_config\.ret_lightning\.layers is \[1, 2\], which is no"),
        (field("ret_lightning", {"gait": "none"}), r"query_config\.ret_lightning\.gait is unknown to this version"),
        (field("ret_lightning", {"cell_per_step": "no"}), r"query_config\.ret_lightning\.cell_per_step is 'no', which is"),
        (field("ret_lightning", {"layers": {"text": [0.9], "vision": [1]}}), r"layers\.text is \[0\.9\]; wanted a list"),
        (field("ret_lightning", {"image_std": [0, 0, 0]}), r"image_std is \[0, 0, 0\]; wanted 3 numbers above 0"),
        (field("ret_lightning", {"image_mean": [0.5, 0.5]}), r"image_mean is \[0\.5, 0\.5\]; wanted 3 numbers"),
        (lambda c: c.update(ret_lightning={"share_cell": True}), r"field ret_lightning\.share_cell is unknown"),
        (
            lambda c: (c.update(ret_lightning={"share_cells": True}), c["passage_config"].update(use_tanh=True)),
            r"field passage_config\.use_tanh differs from that of query_config, but ret_lightning\.share_cells is set",
        ),
        (field("num_attention_heads", 0), r"field query_config\.num_attention_heads is 0, and 1 is the least"),
        (field("late_proj_output_size", -4), r"field query_config\.late_proj_output_size is -4, and 0 is the least"),
        (field("dropout_p", 2), r"field query_config\.dropout_p is 2, which is not from 0 to 1"),
        (lambda c: c["query_config"]["vision_config"].update(patch_size=0), r"no model can be built of|cannot be built"),
        (lambda c: c["query_config"]["text_config"].update(model_type="bert"), r"text_config\.model_type is 'bert', which is"),
        (
            lambda c: c["query_config"]["text_config"].update(num_attention_heads=5),
            r"query_config\.text_config: clip_text_model cannot be built: ",
        ),
    ],
)  # fmt: skip
def test_a_broken_config_is_told_with_file_and_field(copy, change, message: str) -> None:
    folder = copy("clip_vit_l")
    edit_config(folder, change)
    with pytest.raises(UserError, match=message) as raised:
        RetRetriever.from_pretrained(folder)
    assert str(raised.value).startswith(str(folder / "config.json"))
    assert "\n" not in str(raised.value)

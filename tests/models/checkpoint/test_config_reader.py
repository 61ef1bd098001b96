"""Building a retriever from a checkpoint's config.json: fields, defaults, and errors with file and field."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ret_lightning import RetRetriever
from ret_lightning.errors import UserError
from tests.support.checkpoint_folders import edit_config
from tests.support.tiny_models import BY_NAME


def test_model_matches_config() -> None:
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


def test_shared_backbone_is_trained_up_to_last_used_block(copy) -> None:
    folder = copy("two_kinds_of_tower")  # the query tower uses vision block 22, the passage tower block 11
    edit_config(folder, lambda c: [c[f"{s}_config"].update(is_vision_frozen=False) for s in ("query", "passage")])
    stack = RetRetriever.from_pretrained(folder).query_tower.vision_backbone
    trained = [all(p.requires_grad for p in stack.block(i).parameters()) for i in range(24)]
    assert trained == [True] * 23 + [False]


def test_missing_fields_have_published_defaults(copy) -> None:
    folder = copy("clip_vit_b_relu_tanh_priors")
    removed = ("layer_strategy", "is_text_frozen", "dropout_p", "use_pooler_features", "num_attention_heads")
    edit_config(folder, lambda c: [c["query_config"].pop(field) for field in removed])
    edit_config(folder, lambda c: c.pop("share_text_models"))
    retriever = RetRetriever.from_pretrained(folder)
    assert retriever.query_tower.cells[0].dropout == 0.05
    original = RetRetriever.from_pretrained(BY_NAME["clip_vit_b_relu_tanh_priors"])
    assert all(torch.equal(a, b) for a, b in zip(retriever.parameters(), original.parameters(), strict=True))


def test_query_config_decides_for_shared_backbone(copy) -> None:
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
    ("change", "code", "key", "found"),
    [
        (lambda c: c.pop("query_config"), "checkpoint-field-missing", "query_config", None),
        (no_field("vision_config"), "checkpoint-field-missing", "query_config.vision_config", None),
        (field("hidden_size", "64"), "checkpoint-field-type", "query_config.hidden_size", "'64'"),
        (field("use_tanh", 1), "checkpoint-field-type", "query_config.use_tanh", "1"),
        (field("num_queries", True), "checkpoint-field-type", "query_config.num_queries", "True"),
        (field("layer_strategy", "clip_vit_x"), "checkpoint-field-choice", "query_config.layer_strategy", "clip_vit_x"),
        (field("activation_fn", "swish"), "checkpoint-field-choice", "query_config.activation_fn", "swish"),
        (field("ret_lightning", {"layers": [1, 2]}), "checkpoint-field-type", "query_config.ret_lightning.layers", "[1, 2]"),
        (field("ret_lightning", {"gait": "none"}), "checkpoint-field-unknown", "query_config.ret_lightning.gait", None),
        (
            field("ret_lightning", {"cell_per_step": "no"}),
            "checkpoint-field-type", "query_config.ret_lightning.cell_per_step", "'no'",
        ),
        (
            field("ret_lightning", {"layers": {"text": [0.9], "vision": [1]}}),
            "checkpoint-layers-not-numbers", "query_config.ret_lightning.layers.text", "[0.9]",
        ),
        (
            field("ret_lightning", {"image_std": [0, 0, 0]}),
            "checkpoint-field-numbers", "query_config.ret_lightning.image_std", "[0, 0, 0]",
        ),
        (
            field("ret_lightning", {"image_mean": [0.5, 0.5]}),
            "checkpoint-field-numbers", "query_config.ret_lightning.image_mean", "[0.5, 0.5]",
        ),
        (lambda c: c.update(ret_lightning={"share_cell": True}), "checkpoint-field-unknown", "ret_lightning.share_cell", None),
        (
            lambda c: (c.update(ret_lightning={"share_cells": True}), c["passage_config"].update(use_tanh=True)),
            "checkpoint-cells-differ", "passage_config.use_tanh", None,
        ),
        (field("num_attention_heads", 0), "checkpoint-field-too-small", "query_config.num_attention_heads", 0),
        (field("late_proj_output_size", -4), "checkpoint-field-too-small", "query_config.late_proj_output_size", -4),
        (field("dropout_p", 2), "checkpoint-field-share", "query_config.dropout_p", 2),
        (
            lambda c: c["query_config"]["text_config"].update(model_type="bert"),
            "checkpoint-backbone-unknown", "query_config.text_config.model_type", "bert",
        ),
    ],
)  # fmt: skip
def test_invalid_field_is_reported_with_file(copy, change, code: str, key: str, found: object) -> None:
    folder = copy("clip_vit_l")
    edit_config(folder, change)
    with pytest.raises(UserError) as error:
        RetRetriever.from_pretrained(folder)
    assert (error.value.code, error.value.key, error.value.values.get("found")) == (code, key, found)
    assert error.value.message.startswith(f"{folder / 'config.json'}: field {key} ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "codes", "section"),
    [
        (field("layer_strategy", "openclip_vit_g"), {"plan-blocks-missing"}, "query_config: recurrence: text blocks "),
        (field("num_attention_heads", 5), {"cell-heads-not-divisor"}, "query_config: "),
        (field("ret_lightning", {"gate": "lsmt"}), {"gate-name-unknown"}, "query_config.ret_lightning: "),
        (
            lambda c: c["query_config"]["vision_config"].update(patch_size=0),
            {"checkpoint-not-built", "backbone-not-built"},
            "",
        ),
        (
            lambda c: c["query_config"]["text_config"].update(num_attention_heads=5),
            {"backbone-not-built"},
            "query_config.text_config: backbone: clip_text_model ",
        ),
    ],
)
def test_inconsistent_config_is_reported_with_section(copy, change, codes: set[str], section: str) -> None:
    folder = copy("clip_vit_l")
    edit_config(folder, change)
    with pytest.raises(UserError) as error:
        RetRetriever.from_pretrained(folder)
    assert error.value.code in codes
    assert error.value.path == folder / "config.json"
    assert error.value.message.startswith(f"{folder / 'config.json'}: {section}")
    assert "\n" not in str(error.value)

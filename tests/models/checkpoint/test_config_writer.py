"""Writing a checkpoint's config.json: unchanged fields, new models, and all variants."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ret_lightning import RetRetriever
from ret_lightning.errors import ConfigError
from ret_lightning.models import build_retriever
from ret_lightning.models.backbones.clip_transformers import clip_backbone
from ret_lightning.models.gates import Gate, LSTMGate, gate_named
from ret_lightning.models.layer_plans import Evenly, FirstMiddleLast, Last
from tests.support.checkpoint_folders import edit_config, same, tensors
from tests.support.tiny_models import BY_NAME, assert_same_function

GATES = ("lstm", "no_forget", "no_input", "none", "coupled", "scalar", "constant")


def both(**fields: object) -> Callable[[dict], object]:
    return lambda config: [config[side].update(fields) for side in ("query_config", "passage_config")]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("no_map_int_priors", both(late_proj_output_size=None)),
        ("untied_backbones", lambda c: c.update(share_text_models=None, share_vision_models=None)),
        ("clip_vit_b_pooled_shared", lambda c: c.update(share_text_models=False, share_vision_models=False)),
        ("clip_vit_l", lambda c: c["passage_config"].update(is_text_frozen=False, is_vision_frozen=False)),
        (
            "clip_vit_l",
            lambda c: [c["query_config"].pop("_name_or_path"), c["query_config"]["text_config"].pop("_name_or_path")],
        ),
        ("clip_vit_l", both(ret_lightning={"max_length": 9, "image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1]})),
    ],
)
def test_loaded_config_is_saved_unchanged(copy, tmp_path: Path, name: str, change) -> None:
    folder = copy(name)
    edit_config(folder, change)
    retriever = RetRetriever.from_pretrained(folder)
    retriever.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == json.loads(
        (folder / "config.json").read_text()
    )
    assert same(tensors(tmp_path / "again"), tensors(folder))


def test_width_not_divisible_by_64_is_published_layout(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 12}
    backbone = clip_backbone(
        text=sizes, vision={**sizes, "image_size": 32, "patch_size": 8}, published_plan="clip_vit_b"
    )
    build_retriever(backbone, LSTMGate, hidden_size=96, num_heads=1, num_tokens=4).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["query_config"]["layer_strategy"] == "clip_vit_b"
    assert "ret_lightning" not in config["query_config"]


def test_new_model_has_published_keys(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 12}
    backbone = clip_backbone(
        text={**sizes, "vocab_size": 99, "eos_token_id": 98, "bos_token_id": 97},
        vision={**sizes, "image_size": 32, "patch_size": 8},
        published_plan="clip_vit_b",
    )
    retriever = build_retriever(backbone, LSTMGate, hidden_size=64, num_tokens=8, output_size=16)
    retriever.save_pretrained(tmp_path)
    ours, theirs = tensors(tmp_path), tensors(BY_NAME["clip_vit_b_relu_tanh_priors"])
    assert ours.keys() == theirs.keys()
    config = json.loads((tmp_path / "config.json").read_text())
    published = json.loads((BY_NAME["clip_vit_b_relu_tanh_priors"] / "config.json").read_text())
    assert "ret_lightning" not in json.dumps(config)
    assert config.keys() == published.keys()
    # transformers 4 also wrote fields that are unrelated to the model, such as those of text generation.
    assert {*config["query_config"]} >= {
        "text_config", "vision_config", "is_text_frozen", "is_vision_frozen", "late_proj_output_size", "layer_strategy",
        "use_pooler_features", "num_queries", "hidden_size", "intermediate_size", "num_attention_heads", "dropout_p",
        "attention_dropout", "activation_fn", "input_gate_bias_prior", "forget_gate_bias_prior", "use_tanh",
    }  # fmt: skip
    assert config["query_config"]["layer_strategy"] == "clip_vit_b"


@pytest.mark.parametrize("gate", GATES)
def test_gates_are_saved_and_loaded(make_retriever, gate: str, tmp_path: Path) -> None:
    def create(size: int) -> Gate:
        return gate_named(gate)(size, input_bias=0.3, forget_bias=-1.5, tanh=True)

    retriever = make_retriever(gate=create).eval()
    retriever.save_pretrained(tmp_path)
    again = RetRetriever.from_pretrained(tmp_path)
    assert type(again.query_tower.cells[0].gate) is gate_named(gate)
    assert_same_function(again, retriever)


VARIANTS = {
    "one tower": {"share_towers": True},
    "shared cell": {"share_cells": True},
    "cell per step": {"cell_per_step": True, "recurrence": Evenly(3)},
    "shared cell per step": {"cell_per_step": True, "share_cells": True, "recurrence": FirstMiddleLast()},
    "last": {"recurrence": Last()},
    "pooled without output map": {"pooled": True, "output_size": 0},
    "other sizes": {"num_heads": 4, "intermediate_size": 40, "num_tokens": 7, "activation": "relu", "dropout": 0.3},
    "trained": {"train_text": True, "train_vision": 2},
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_variants_are_saved_and_loaded(make_retriever, options: dict, tmp_path: Path) -> None:
    retriever = make_retriever(**options).eval()
    retriever.save_pretrained(tmp_path)
    again = RetRetriever.from_pretrained(tmp_path)
    assert_same_function(again, retriever)
    for model in (retriever, again):
        query, passage = model.query_tower, model.passage_tower
        assert (query is passage) == options.get("share_towers", False)
        assert (query.cells[0] is passage.cells[0]) == (
            options.get("share_cells", False) or options.get("share_towers", False)
        )
        assert len(query.cells) == (query.plan.steps if options.get("cell_per_step") else 1)
        assert query.cells[0].dropout == options.get("dropout", 0.05)
        assert bool(query.vision_backbone.trained) == bool(options.get("train_vision"))
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "config.json").read_text()
    assert same(tensors(tmp_path / "again"), tensors(tmp_path))
    # The published classes reject the unknown plan, so that they do not compute a different function.
    strategy = json.loads((tmp_path / "config.json").read_text())["query_config"]["layer_strategy"]
    assert strategy == "ret_lightning"


def test_preprocessing_settings_are_saved(make_retriever, tmp_path: Path) -> None:
    retriever = make_retriever()
    retriever.query_tower.image_transform.mean = retriever.passage_tower.image_transform.mean = (0.1, 0.2, 0.3)
    retriever.save_pretrained(tmp_path)
    again = RetRetriever.from_pretrained(tmp_path)
    assert again.passage_tower.image_transform.mean == (0.1, 0.2, 0.3)
    assert again.passage_tower.image_transform.size == 16
    assert again.passage_tower.tokenizer.max_length == 20


def test_gate_without_name_is_not_saved(make_retriever, tmp_path: Path) -> None:
    class MyGate(LSTMGate):
        pass

    with pytest.raises(ConfigError) as error:
        make_retriever(gate=MyGate).save_pretrained(tmp_path)
    assert (error.value.code, error.value.gate) == ("gate-without-name", "MyGate")
    assert list(tmp_path.iterdir()) == []

"""Checkpoints: the published layout read and written, and our extension of it for the variants."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file

from ret_lightning import RetRetriever
from ret_lightning.errors import ConfigError, UserError
from ret_lightning.models import EncoderInput, build_retriever
from ret_lightning.models.backbones.clip_transformers import clip_backbone
from ret_lightning.models.checkpoint.files import load_weights
from ret_lightning.models.gates import Gate, LSTMGate, gate_named
from ret_lightning.models.layer_plans import Evenly, FirstMiddleLast, Last
from tests.support.tiny_models import BY_NAME, PUBLISHED, assert_same_function, batch

GATES = ("lstm", "no_forget", "no_input", "none", "coupled", "scalar", "constant")


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in b)


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a checkpoint that may be broken."""

    def copied(name: str) -> Path:
        return Path(shutil.copytree(BY_NAME[name], tmp_path / name))

    return copied


def edit_config(folder: Path, change: Callable[[dict], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("folder", PUBLISHED, ids=BY_NAME)
def test_an_unchanged_model_is_saved_as_it_was_read(folder: Path, tmp_path: Path) -> None:
    retriever = RetRetriever.from_pretrained(folder)
    retriever.save_pretrained(tmp_path)
    assert same(tensors(tmp_path), tensors(folder))
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("name", ["untied_backbones", "no_map_int_priors", "two_kinds_of_tower", "bfloat16_shards"])
def test_features_are_those_of_the_published_code(name: str) -> None:
    half = name == "bfloat16_shards"
    retriever = RetRetriever.from_pretrained(BY_NAME[name], dtype="float32" if half else None)
    data = load_file(BY_NAME[name].parent / "reference.safetensors")
    for side, tower in (("query", retriever.query_tower), ("passage", retriever.passage_tower)):
        names = ("input_ids", "attention_mask", "pixel_values", "text_mask", "image_mask")
        with torch.no_grad():
            ours = tower(EncoderInput.dense(*(data[f"{side}_{name}"] for name in names)))
        theirs = data[f"{side}_features"].float()
        # The published code computed the stored features in bfloat16, whose steps are 0.8 % wide.
        assert (ours - theirs).abs().max() < (3e-2 if half else 1e-5) * theirs.abs().max()


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
def test_what_the_published_classes_accept_is_written_as_it_was_read(copy, tmp_path: Path, name: str, change) -> None:
    folder = copy(name)
    edit_config(folder, change)
    retriever = RetRetriever.from_pretrained(folder)
    retriever.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == json.loads(
        (folder / "config.json").read_text()
    )
    assert same(tensors(tmp_path / "again"), tensors(folder))


def test_of_a_shared_backbone_the_query_side_says_what_is_trained(copy) -> None:
    folder = copy("clip_vit_l")
    edit_config(folder, lambda c: c["query_config"].update(is_text_frozen=True, is_vision_frozen=False))
    edit_config(folder, lambda c: c["passage_config"].update(is_text_frozen=False, is_vision_frozen=True))
    tower = RetRetriever.from_pretrained(folder).query_tower
    assert (tower.text_backbone.trained, tower.vision_backbone.trained) == (False, True)


def test_a_width_that_is_no_multiple_of_64_is_published_all_the_same(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 12}
    backbone = clip_backbone(
        text=sizes, vision={**sizes, "image_size": 32, "patch_size": 8}, published_plan="clip_vit_b"
    )
    build_retriever(backbone, LSTMGate, hidden_size=96, num_heads=1, num_tokens=4).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["query_config"]["layer_strategy"] == "clip_vit_b"
    assert "ret_lightning" not in config["query_config"]


def test_tied_tensors_that_are_stored_twice(copy) -> None:
    folder = copy("clip_vit_l")
    state = load_file(folder / "model.safetensors")
    twice = {n.replace("query_model", "passage_model"): t.clone() for n, t in state.items() if ".text_model." in n}
    save_file({**state, **twice}, folder / "model.safetensors")
    RetRetriever.from_pretrained(folder)
    twice["passage_model.text_model.text_model.final_layer_norm.bias"] += 1
    save_file({**state, **twice}, folder / "model.safetensors")
    with pytest.raises(UserError) as raised:
        RetRetriever.from_pretrained(folder)
    assert (raised.value.code, raised.value.reason) == ("checkpoint-tensors-differ", "not in the model")
    assert raised.value.found == ("passage_model.text_model.text_model.final_layer_norm.bias",)


def test_saving_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    retriever = RetRetriever.from_pretrained(BY_NAME["clip_vit_l"]).train()
    before = {name: (id(p), p.clone(), p.requires_grad) for name, p in retriever.named_parameters()}
    modes = [m.training for m in retriever.modules()]
    retriever.save_pretrained(tmp_path / "one")
    retriever.save_pretrained(tmp_path / "two")
    for name, p in retriever.named_parameters():
        assert (id(p), p.requires_grad) == (before[name][0], before[name][2])
        assert torch.equal(p, before[name][1])
    assert [m.training for m in retriever.modules()] == modes
    assert retriever.query_tower.text_backbone is retriever.passage_tower.text_backbone
    assert same(tensors(tmp_path / "one"), tensors(tmp_path / "two"))


def test_a_new_model_has_the_keys_of_a_published_one(tmp_path: Path) -> None:
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
    # Fields of text generation and the like, which transformers 4 wrote into every config, are its own affair.
    assert {*config["query_config"]} >= {
        "text_config", "vision_config", "is_text_frozen", "is_vision_frozen", "late_proj_output_size", "layer_strategy",
        "use_pooler_features", "num_queries", "hidden_size", "intermediate_size", "num_attention_heads", "dropout_p",
        "attention_dropout", "activation_fn", "input_gate_bias_prior", "forget_gate_bias_prior", "use_tanh",
    }  # fmt: skip
    assert config["query_config"]["layer_strategy"] == "clip_vit_b"


@pytest.mark.parametrize("gate", GATES)
def test_every_gate_is_saved_and_read(make_retriever, gate: str, tmp_path: Path) -> None:
    def made(size: int) -> Gate:
        return gate_named(gate)(size, input_bias=0.3, forget_bias=-1.5, tanh=True)

    retriever = make_retriever(gate=made).eval()
    retriever.save_pretrained(tmp_path)
    again = RetRetriever.from_pretrained(tmp_path)
    assert type(again.query_tower.cells[0].gate) is gate_named(gate)
    assert_same_function(again, retriever)


VARIANTS = {
    "one tower": {"share_towers": True},
    "one cell for both towers": {"share_cells": True},
    "a cell a step": {"cell_per_step": True, "recurrence": Evenly(3)},
    "a cell a step, shared": {"cell_per_step": True, "share_cells": True, "recurrence": FirstMiddleLast()},
    "last": {"recurrence": Last()},
    "pooled without a map": {"pooled": True, "output_size": 0},
    "other sizes": {"num_heads": 4, "intermediate_size": 40, "num_tokens": 7, "activation": "relu", "dropout": 0.3},
    "trained": {"train_text": True, "train_vision": 2},
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_variant_is_saved_and_read(make_retriever, options: dict, tmp_path: Path) -> None:
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
    # What the published classes would compute something else with is of a plan that they do not know.
    strategy = json.loads((tmp_path / "config.json").read_text())["query_config"]["layer_strategy"]
    assert strategy == "ret_lightning"


def test_the_preparation_of_images_and_texts_is_kept(make_retriever, tmp_path: Path) -> None:
    retriever = make_retriever()
    retriever.query_tower.image_transform.mean = retriever.passage_tower.image_transform.mean = (0.1, 0.2, 0.3)
    retriever.save_pretrained(tmp_path)
    again = RetRetriever.from_pretrained(tmp_path)
    assert again.passage_tower.image_transform.mean == (0.1, 0.2, 0.3)
    assert again.passage_tower.image_transform.size == 16
    assert again.passage_tower.tokenizer.max_length == 20


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16", "bf16", torch.float64])
def test_loading_in_another_precision(dtype) -> None:
    retriever = RetRetriever.from_pretrained(BY_NAME["clip_vit_l"], dtype=dtype, device="cpu")
    wanted = torch.float64 if dtype is torch.float64 else torch.bfloat16
    assert {t.dtype for t in retriever.state_dict().values()} == {wanted}


@pytest.mark.parametrize("device", ["banana", "meta", "cuda:99"])
def test_a_device_that_cannot_be_used_is_told_before_anything_is_read(device: str) -> None:
    with pytest.raises(ConfigError, match=rf"device={device} (cannot be used|holds no numbers)"):
        RetRetriever.from_pretrained("nowhere", device=device)


def test_loaded_in_inference_mode_it_can_be_trained(make_retriever, tmp_path: Path) -> None:
    make_retriever(dropout=0.0).save_pretrained(tmp_path)
    with torch.inference_mode():
        retriever = RetRetriever.from_pretrained(tmp_path)
    query, passage = retriever.train()(batch([1, 1], [1, 0]), batch([1, 1], [0, 1]))
    (query * passage).sum().backward()
    assert retriever.query_tower.start.grad is not None


def test_an_unknown_precision_is_told() -> None:
    with pytest.raises(ConfigError, match=r"dtype=int3 is unknown; choices: float32, .*bfloat16"):
        RetRetriever.from_pretrained(BY_NAME["clip_vit_l"], dtype="int3")


def test_large_weights_are_split_and_old_files_go(make_retriever, tmp_path: Path) -> None:
    retriever = make_retriever()
    retriever.save_pretrained(tmp_path, max_shard_size="50KB")
    (tmp_path / "notes.txt").write_text("mine")
    assert not (tmp_path / "model.safetensors").exists()
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_same_function(RetRetriever.from_pretrained(tmp_path), retriever.eval())
    retriever.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors", "notes.txt"]
    retriever.save_pretrained(tmp_path, max_shard_size="50KB")
    assert not (tmp_path / "model.safetensors").exists()


def test_a_model_can_be_saved_over_what_it_was_read_from(copy) -> None:
    folder = copy("clip_vit_l")
    retriever = RetRetriever.from_pretrained(folder)
    with torch.no_grad():
        retriever.query_tower.start.add_(1)
    retriever.save_pretrained(folder)
    written, before = tensors(folder), tensors(BY_NAME["clip_vit_l"])
    changed = [name for name in before if not torch.equal(written[name], before[name])]
    assert changed == ["query_model.ret_cell.query_hidden_states"]


def test_files_of_others_stay(make_retriever, tmp_path: Path) -> None:
    others = ["model.fp16.safetensors", "modelA.safetensors", "model_of_a_colleague.safetensors", "README.md"]
    for name in others:
        (tmp_path / name).write_text("mine")
    make_retriever().save_pretrained(tmp_path, max_shard_size="50KB")
    make_retriever().save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*others, "config.json", "model.safetensors"])


@pytest.mark.parametrize("size", ["abc", "5XB", "0GB", 0, -5, "1", ""])
def test_a_size_of_shards_that_is_none(make_retriever, tmp_path: Path, size) -> None:
    with pytest.raises(
        ConfigError, match=r"max_shard_size=.* is no size: give bytes, or a number with KB, MB, GB or TB"
    ):
        make_retriever().save_pretrained(tmp_path / "never", max_shard_size=size)
    assert not (tmp_path / "never").exists()


def test_a_save_that_fails_half_way_leaves_the_old_shards(make_retriever, tmp_path: Path, monkeypatch) -> None:
    make_retriever().save_pretrained(tmp_path, max_shard_size="50KB")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    written = []
    save_file = safetensors.torch.save_file

    def fails_at_the_third(tensors: dict, path: Path, metadata: dict) -> None:
        written.append(path)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        save_file(tensors, path, metadata)

    monkeypatch.setattr("safetensors.torch.save_file", fails_at_the_third)
    for size in ("50KB", "30KB"):
        written.clear()
        with pytest.raises(UserError) as caught:
            make_retriever().save_pretrained(tmp_path, max_shard_size=size)
        assert caught.value.code == "disk-full"
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_failed_save_leaves_the_old_checkpoint(copy, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy("clip_vit_l")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def full_disk(tensors: dict, path: Path, metadata: dict) -> None:
        Path(path).write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    with pytest.raises(UserError) as caught:
        RetRetriever.from_pretrained(BY_NAME["clip_vit_l"]).save_pretrained(folder)
    assert (caught.value.code, caught.value.path) == ("disk-full", str(folder / "model.safetensors"))
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_a_gate_without_a_name_is_not_saved(make_retriever, tmp_path: Path) -> None:
    class MyGate(LSTMGate):
        pass

    with pytest.raises(ConfigError, match=r"MyGate cannot be stored in a checkpoint: give the class a `name`"):
        make_retriever(gate=MyGate).save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []


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


def without(name: str) -> Callable[[dict], dict]:
    return lambda state: {n: t for n, t in state.items() if n != name}


@pytest.mark.parametrize(
    ("change", "reason", "first"),
    [
        (
            without("query_model.ret_cell.sa.in_proj_weight"),
            "missing in the file",
            "query_model.ret_cell.sa.in_proj_weight",
        ),
        (
            lambda s: {n: t.to(torch.int8) if "late_proj" in n else t for n, t in s.items()},
            "no floating point numbers",
            "query_model.late_proj.weight is torch.int8",
        ),
        (lambda s: {**s, "lm_head.weight": torch.zeros(1)}, "not in the model", "lm_head.weight"),
        (
            lambda s: {**s, "query_model.late_proj.weight": torch.zeros(3, 128)},
            "of another shape",
            "query_model.late_proj.weight is (3, 128) in the file and (16, 128) in the model",
        ),
        (
            lambda s: {n: t for n, t in s.items() if not n.startswith("passage_model.")},
            "missing in the file",
            "passage_model.ret_cell.query_hidden_states",
        ),
    ],
)
def test_weights_that_do_not_fit_are_told(copy, change, reason: str, first: str) -> None:
    folder = copy("clip_vit_l")
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")
    with pytest.raises(UserError) as raised:
        RetRetriever.from_pretrained(folder)
    assert raised.value.code == "checkpoint-tensors-differ"
    assert (raised.value.reason, raised.value.found[0]) == (reason, first)
    more = len(raised.value.found) - 3
    assert ("more" in raised.value.message) == (more > 0)


def test_positions_that_old_versions_of_transformers_stored_are_passed_over(copy) -> None:
    folder = copy("clip_vit_l")
    state = load_file(folder / "model.safetensors")
    state["query_model.text_model.text_model.embeddings.position_ids"] = torch.arange(24)[None]
    save_file(state, folder / "model.safetensors")
    RetRetriever.from_pretrained(folder)


def test_files_that_are_no_checkpoint_are_told(copy, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"checkpoint .*: there is no config\.json in it"):
        RetRetriever.from_pretrained(tmp_path)
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/checkpoints/last.ckpt").touch()
    with pytest.raises(UserError, match=r"no config\.json in it; .* `ret-export checkpoint=.*/run output=DIR` writes"):
        RetRetriever.from_pretrained(tmp_path / "run")
    folder = copy("clip_vit_l")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(UserError, match=r"model\.safetensors: not a whole safetensors file \(.*\); fetch it again"):
        RetRetriever.from_pretrained(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"model\.safetensors is missing; weights are read from safetensors only"):
        RetRetriever.from_pretrained(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x.safetensors"}}')
    with pytest.raises(UserError, match=r"index\.json: weight_map must give names of files in this folder"):
        RetRetriever.from_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: not JSON"):
        RetRetriever.from_pretrained(folder)
    for source in ("", None, 5):
        with pytest.raises(UserError, match="wanted a folder, or a hub id"):
            RetRetriever.from_pretrained(source)
    for source in ("./nowhere", "/nowhere", "nowhere", "a/b/c"):
        with pytest.raises(UserError, match=r"no such folder \(a hub id would be owner/name\)"):
            RetRetriever.from_pretrained(source)


def test_a_hub_id_that_is_not_to_be_had_offline_says_where_it_is_looked_for() -> None:
    with pytest.raises(UserError, match=r"`hf download nobody/nothing`; it is looked for in .*hub") as raised:
        RetRetriever.from_pretrained("nobody/nothing")
    assert "\n" not in str(raised.value)


def test_weights_of_another_model_of_the_same_architecture(make_retriever, tmp_path: Path) -> None:
    source, target = make_retriever().eval(), make_retriever(train_text=1, dropout=0.2)
    source.query_tower.text_backbone.source = "owner/clip"
    source.stored_config = {"note": "kept"}
    load_weights(target, source, "init_from=x")
    assert_same_function(target.eval(), source)
    assert target.query_tower.cells[0].dropout == 0.2
    assert any(p.requires_grad for p in target.query_tower.text_backbone.parameters())
    assert not any(p.requires_grad for p in target.query_tower.vision_backbone.parameters())
    target.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["note"] == "kept"
    assert config["query_config"]["text_config"]["_name_or_path"] == "owner/clip"


def test_weights_keep_the_dtype_of_the_model_that_gets_them(make_retriever) -> None:
    source, target = make_retriever().bfloat16(), make_retriever()
    load_weights(target, source, "x")
    assert {p.dtype for p in target.parameters()} == {torch.float32}
    assert torch.equal(target.query_tower.start, source.query_tower.start.float())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_tokens": 5}, r"model\.num_tokens=5 there and 4 here"),
        ({"recurrence": Last()}, r"recurrence\.text=\[3\] there and \[0, 1, 2, 3\] here"),
        ({"gate": gate_named("none")}, r"gate=none there and lstm here"),
        ({"share_towers": True}, r"model\.share_towers=True there and False here"),
        ({"activation": "relu"}, r"model\.activation=relu there and gelu here"),
    ],
)
def test_weights_of_another_architecture_are_refused(make_retriever, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=r"^init_from=x: the checkpoint is of another architecture .*" + message):
        load_weights(make_retriever(), make_retriever(**options), "init_from=x")


def test_what_is_loaded_shares_no_memory_with_its_source(make_retriever) -> None:
    source, target = make_retriever(share_cells=True), make_retriever()
    load_weights(target, source, "x")
    theirs = {p.data_ptr() for p in source.parameters()}
    ours = [p.data_ptr() for p in target.parameters()]
    assert not theirs & set(ours)
    assert len(set(ours)) == len(ours)  # nor the two cells with each other, though the source has one


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tower: setattr(tower.cells[0].gate, "settings", {**tower.cells[0].gate.settings, "tanh": True}),
            "gate.tanh",
        ),
        (lambda tower: setattr(tower.cells[0], "activation", "relu"), "model.activation"),
        (lambda tower: setattr(tower, "pooled", True), "model.pooled"),
    ],
)
def test_the_passage_tower_counts_as_well(make_retriever, change, message: str) -> None:
    source = make_retriever()
    change(source.passage_tower)
    with pytest.raises(ConfigError, match=rf"passage\.{message}=\S+ there and \S+ here"):
        load_weights(make_retriever(), source, "x")


def test_two_cells_do_not_go_into_one(make_retriever) -> None:
    with pytest.raises(
        UserError, match=r"two tensors in the file and one in the model: passage_model\.ret_cell\..* and query"
    ):
        load_weights(make_retriever(share_cells=True), make_retriever(), "x")
    load_weights(make_retriever(), make_retriever(share_cells=True), "x")

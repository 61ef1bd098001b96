"""Loading and saving of checkpoints: the published layout, atomic writes, and errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from ret_lightning import RetRetriever
from ret_lightning.errors import ConfigError, UserError
from ret_lightning.models import EncoderInput
from ret_lightning.models.checkpoint.files import load_weights
from ret_lightning.models.gates import gate_named
from ret_lightning.models.layer_plans import Last
from tests.support.checkpoint_folders import same, tensors
from tests.support.tiny_models import BY_NAME, PUBLISHED, assert_same_function, batch


@pytest.mark.parametrize("folder", PUBLISHED, ids=BY_NAME)
def test_loaded_model_is_saved_unchanged(folder: Path, tmp_path: Path) -> None:
    retriever = RetRetriever.from_pretrained(folder)
    retriever.save_pretrained(tmp_path)
    assert same(tensors(tmp_path), tensors(folder))
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("name", ["untied_backbones", "no_map_int_priors", "two_kinds_of_tower", "bfloat16_shards"])
def test_features_match_published_code(name: str) -> None:
    half = name == "bfloat16_shards"
    retriever = RetRetriever.from_pretrained(BY_NAME[name], dtype="float32" if half else None)
    data = load_file(BY_NAME[name].parent / "reference.safetensors")
    for side, tower in (("query", retriever.query_tower), ("passage", retriever.passage_tower)):
        names = ("input_ids", "attention_mask", "pixel_values", "text_mask", "image_mask")
        with torch.no_grad():
            ours = tower(EncoderInput.dense(*(data[f"{side}_{name}"] for name in names)))
        theirs = data[f"{side}_features"].float()
        # The published code computed these features in bfloat16, which has a relative precision of 0.8 %.
        assert (ours - theirs).abs().max() < (3e-2 if half else 1e-5) * theirs.abs().max()


def test_shared_tensors_may_be_stored_twice(copy) -> None:
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


def test_saving_does_not_modify_model(tmp_path: Path) -> None:
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


def test_model_loaded_in_inference_mode_can_be_trained(make_retriever, tmp_path: Path) -> None:
    make_retriever(dropout=0.0).save_pretrained(tmp_path)
    with torch.inference_mode():
        retriever = RetRetriever.from_pretrained(tmp_path)
    query, passage = retriever.train()(batch([1, 1], [1, 0]), batch([1, 1], [0, 1]))
    (query * passage).sum().backward()
    assert retriever.query_tower.start.grad is not None


def test_large_weights_are_split_into_shards(make_retriever, tmp_path: Path) -> None:
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


def test_model_can_overwrite_its_checkpoint(copy) -> None:
    folder = copy("clip_vit_l")
    retriever = RetRetriever.from_pretrained(folder)
    with torch.no_grad():
        retriever.query_tower.start.add_(1)
    retriever.save_pretrained(folder)
    written, before = tensors(folder), tensors(BY_NAME["clip_vit_l"])
    changed = [name for name in before if not torch.equal(written[name], before[name])]
    assert changed == ["query_model.ret_cell.query_hidden_states"]


def test_saving_keeps_other_files(make_retriever, tmp_path: Path) -> None:
    others = ["model.fp16.safetensors", "modelA.safetensors", "model_of_a_colleague.safetensors", "README.md"]
    for name in others:
        (tmp_path / name).write_text("mine")
    make_retriever().save_pretrained(tmp_path, max_shard_size="50KB")
    make_retriever().save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*others, "config.json", "model.safetensors"])


@pytest.mark.parametrize("size", ["abc", "5XB", "0GB", 0, -5, "1", ""])
def test_invalid_shard_size_is_refused(make_retriever, tmp_path: Path, size) -> None:
    with pytest.raises(ConfigError) as error:
        make_retriever().save_pretrained(tmp_path / "never", max_shard_size=size)
    assert (error.value.code, error.value.found) == ("shard-size-invalid", size)
    assert not (tmp_path / "never").exists()


def test_failed_save_keeps_old_shards(make_retriever, tmp_path: Path, monkeypatch) -> None:
    make_retriever().save_pretrained(tmp_path, max_shard_size="50KB")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    written = []
    save_file = safetensors.torch.save_file

    def fail_at_third_file(tensors: dict, path: Path, metadata: dict) -> None:
        written.append(path)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        save_file(tensors, path, metadata)

    monkeypatch.setattr("safetensors.torch.save_file", fail_at_third_file)
    for size in ("50KB", "30KB"):
        written.clear()
        with pytest.raises(UserError) as caught:
            make_retriever().save_pretrained(tmp_path, max_shard_size=size)
        assert caught.value.code == "disk-full"
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_failed_save_keeps_old_checkpoint(copy, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_folder_that_cannot_be_created_is_reported(make_retriever, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as caught:
        make_retriever().save_pretrained(tmp_path / "file/model")
    error = caught.value
    assert (error.code, error.path, error.reason) == (
        "checkpoint-not-written",
        tmp_path / "file/model",
        "Not a directory",
    )


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
            "query_model.late_proj.weight has shape (3, 128) in the file and (16, 128) in the model",
        ),
        (
            lambda s: {n: t for n, t in s.items() if not n.startswith("passage_model.")},
            "missing in the file",
            "passage_model.ret_cell.query_hidden_states",
        ),
    ],
)
def test_weights_that_do_not_fit_are_reported(copy, change, reason: str, first: str) -> None:
    folder = copy("clip_vit_l")
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")
    with pytest.raises(UserError) as raised:
        RetRetriever.from_pretrained(folder)
    assert raised.value.code == "checkpoint-tensors-differ"
    assert (raised.value.reason, raised.value.found[0]) == (reason, first)
    more = len(raised.value.found) - 3
    assert ("more" in raised.value.message) == (more > 0)


def test_position_ids_of_old_transformers_are_ignored(copy) -> None:
    folder = copy("clip_vit_l")
    state = load_file(folder / "model.safetensors")
    state["query_model.text_model.text_model.embeddings.position_ids"] = torch.arange(24)[None]
    save_file(state, folder / "model.safetensors")
    RetRetriever.from_pretrained(folder)


def test_invalid_checkpoints_are_reported(copy, tmp_path: Path) -> None:
    def error_of(source: object) -> UserError:
        with pytest.raises(UserError) as error:
            RetRetriever.from_pretrained(source)
        return error.value

    error = error_of(tmp_path)
    assert (error.code, error.path) == ("checkpoint-config-missing", tmp_path / "config.json")
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/checkpoints/last.ckpt").touch()
    error = error_of(tmp_path / "run")
    assert (error.code, error.path) == ("checkpoint-config-missing", tmp_path / "run/config.json")
    assert f"`ret-export checkpoint={tmp_path / 'run'} output=DIR`" in error.message
    folder = copy("clip_vit_l")
    weights, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    weights.write_bytes(weights.read_bytes()[:5000])
    error = error_of(folder)
    assert (error.code, error.path) == ("checkpoint-weights-broken", weights)
    weights.rename(folder / "pytorch_model.bin")
    error = error_of(folder)
    assert (error.code, error.path) == ("checkpoint-weights-missing", weights)
    index.write_text('{"weight_map": {"a": "../x.safetensors"}}')
    error = error_of(folder)
    assert (error.code, error.path) == ("checkpoint-weight-map", index)
    (folder / "config.json").write_text("{")
    error = error_of(folder)
    assert (error.code, error.path) == ("checkpoint-not-json", folder / "config.json")
    (folder / "config.json").write_text("[]")
    error = error_of(folder)
    assert (error.code, error.path, error.found) == ("checkpoint-no-json-object", folder / "config.json", "list")
    for source in ("", None, 5):
        error = error_of(source)
        assert (error.code, error.found) == ("checkpoint-not-a-name", repr(source))
    for source in ("./nowhere", "/nowhere", "nowhere", "a/b/c"):
        error = error_of(source)
        assert (error.code, error.path) == ("checkpoint-folder-missing", Path(source))


def test_unavailable_hub_id_is_reported_with_cache() -> None:
    with pytest.raises(UserError) as error:
        RetRetriever.from_pretrained("nobody/nothing")
    assert (error.value.code, error.value.found) == ("checkpoint-not-downloaded", "nobody/nothing")
    assert "`hf download nobody/nothing`" in error.value.message
    assert constants.HF_HUB_CACHE in error.value.message
    assert "\n" not in str(error.value)


def test_weights_of_same_architecture_are_loaded(make_retriever, tmp_path: Path) -> None:
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


def test_load_weights_keeps_dtype_of_target(make_retriever) -> None:
    source, target = make_retriever().bfloat16(), make_retriever()
    load_weights(target, source, "x")
    assert {p.dtype for p in target.parameters()} == {torch.float32}
    assert torch.equal(target.query_tower.start, source.query_tower.start.float())


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"num_tokens": 5}, "model.num_tokens=5 in the checkpoint and 4 in the config"),
        ({"recurrence": Last()}, "recurrence.text=[3] in the checkpoint and [0, 1, 2, 3] in the config"),
        ({"gate": gate_named("none")}, "gate=none in the checkpoint and lstm in the config"),
        ({"share_towers": True}, "model.share_towers=True in the checkpoint and False in the config"),
        ({"activation": "relu"}, "model.activation=relu in the checkpoint and gelu in the config"),
    ],
)
def test_weights_of_another_architecture_are_refused(make_retriever, options: dict, difference: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_weights(make_retriever(), make_retriever(**options), "init_from=x")
    assert (error.value.code, error.value.path) == ("checkpoint-other-architecture", "init_from=x")
    assert difference in error.value.differences
    assert difference in error.value.message
    assert error.value.message.startswith("init_from=x: ")


def test_loaded_weights_share_no_memory_with_source(make_retriever) -> None:
    source, target = make_retriever(share_cells=True), make_retriever()
    load_weights(target, source, "x")
    theirs = {p.data_ptr() for p in source.parameters()}
    ours = [p.data_ptr() for p in target.parameters()]
    assert not theirs & set(ours)
    assert len(set(ours)) == len(ours)  # the two cells are separate, although the source has one


@pytest.mark.parametrize(
    ("change", "setting"),
    [
        (
            lambda tower: setattr(tower.cells[0].gate, "settings", {**tower.cells[0].gate.settings, "tanh": True}),
            "gate.tanh",
        ),
        (lambda tower: setattr(tower.cells[0], "activation", "relu"), "model.activation"),
        (lambda tower: setattr(tower, "pooled", True), "model.pooled"),
    ],
)
def test_architecture_covers_passage_tower(make_retriever, change, setting: str) -> None:
    source = make_retriever()
    change(source.passage_tower)
    with pytest.raises(ConfigError) as error:
        load_weights(make_retriever(), source, "x")
    assert error.value.code == "checkpoint-other-architecture"
    assert [text.partition("=")[0] for text in error.value.differences] == [f"passage.{setting}"]


def test_two_cells_are_not_loaded_into_shared_cell(make_retriever) -> None:
    with pytest.raises(UserError) as error:
        load_weights(make_retriever(share_cells=True), make_retriever(), "x")
    assert error.value.code == "checkpoint-tensors-differ"
    assert error.value.reason == "two tensors in the file and one in the model"
    assert error.value.found[0].startswith("passage_model.ret_cell.")
    assert " and query_model.ret_cell." in error.value.found[0]
    load_weights(make_retriever(), make_retriever(share_cells=True), "x")


def test_unwritable_cache_names_variable(denied: PermissionError, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> None:
        raise denied

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(UserError) as caught:
        RetRetriever.from_pretrained("a/b")
    assert (caught.value.code, caught.value.variable) == ("cache-not-writable", "HF_HUB_CACHE")

"""Building from configs: what comes out, what is refused before it is imported, and one line for what goes wrong."""

from __future__ import annotations

import sys
from functools import partial

import pytest
from omegaconf import OmegaConf

from ret_lightning.config.build import build
from ret_lightning.config.targets.allowed_targets import OWN_PACKAGES
from ret_lightning.errors import ConfigError, DataError
from tests.support import config_targets

PARTS = "tests.support.config_targets"


@pytest.fixture(autouse=True)
def _own_parts(monkeypatch) -> None:
    monkeypatch.setenv(OWN_PACKAGES, "other, tests")


def test_missing_package_of_the_user_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OWN_PACKAGES, "tests_typo,tests.config,tests_typo.parts")
    with pytest.raises(ConfigError) as raised:
        build(OmegaConf.create({"_target_": f"tests.{PARTS}"}))
    assert (raised.value.code, raised.value.missing) == ("target-not-allowed", ("tests_typo", "tests_typo.parts"))
    assert "tests.config" in raised.value.allowed
    assert "tests_typo" not in raised.value.allowed


def test_a_node_is_built_after_what_is_nested_in_it() -> None:
    config = OmegaConf.create(
        {
            "size": 5,
            "gate": {"_target_": f"{PARTS}.Gate", "hidden": "${size}"},
            "model": {"_target_": f"{PARTS}.Model", "gate": "${gate}", "width": 3},
        }
    )
    model = build(config.model)
    assert type(model) is config_targets.Model
    assert type(model.gate) is config_targets.Gate
    assert (model.gate.hidden, model.width) == (5, 3)


def test_containers_become_plain_ones() -> None:
    config = OmegaConf.create({"_target_": f"{PARTS}.Trainer", "callbacks": [{"a": [1]}]})
    assert type(build(config).callbacks) is list
    assert type(build(config).callbacks[0]) is dict
    assert type(build(config).callbacks[0]["a"]) is list


def test_named_and_listed_sets_of_targets() -> None:
    gate = {"_target_": f"{PARTS}.Gate", "hidden": 1}
    named = build(OmegaConf.create({"first": gate, "none": None, "number": 3}))
    assert type(named) is dict
    assert [type(value) for value in named.values()] == [config_targets.Gate, type(None), int]
    assert [type(item) for item in build(OmegaConf.create([gate, gate]))] == [config_targets.Gate, config_targets.Gate]
    assert build(OmegaConf.create({})) == {}
    assert build(None) is None


def test_a_partial_waits_for_its_caller() -> None:
    config = OmegaConf.create({"_target_": f"{PARTS}.Optimizer", "_partial_": True, "lr": 0.5})
    weights = [object()]
    optimizer = build(config)(weights)
    assert optimizer.lr == 0.5
    assert optimizer.params is weights
    assert isinstance(build(config, weights), partial)
    assert build(config, weights)().params is weights


def test_the_callers_arguments_are_handed_over_and_not_copied() -> None:
    weights = {"w": object()}
    config = OmegaConf.create({"_target_": f"{PARTS}.Optimizer", "lr": 0.5})
    assert build(config, weights).params is weights
    assert build(config, params=weights).params is weights
    assert build(config, weights, lr=2.0).lr == 2.0


def test_arguments_for_nothing_are_a_programming_error() -> None:
    with pytest.raises(ValueError, match="has no _target_"):
        build(OmegaConf.create({"a": {"b": 1}}).a, 3)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("os.system", "a config may not build os.system"),
        ("builtins.eval", "a config may not build builtins.eval"),
        ("subprocess.Popen", "a config may not build subprocess.Popen"),
        ("torch.load", "a config may not build torch.load"),
        ("torch.hub.load", "a config may not build torch.hub.load"),
        ("torch.distributed.elastic.multiprocessing.SubprocessHandler", "a config may not build torch.distributed"),
        ("hydra.utils.get_method", "a config may not build hydra.utils.get_method"),
        ("torchvision.models.resnet18", "a config may not build torchvision.models.resnet18"),
        ("testsuite.Part", "a config may not build testsuite.Part"),
        ("unbuildable.Part", "set RET_LIGHTNING_TARGETS"),
        ("ret_lightning.errors.os.system", "cannot import ret_lightning.errors.os.system"),
        ("ret_lightning.config.targets.allowed_targets.os.system", "it is a name for something in posix"),
        ("ret_lightning.config.checker.yaml_files.Path", "it is a name for something in pathlib"),
        (f"{PARTS}.Gat", f"cannot import {PARTS}.Gat"),
        (f"{PARTS}.Level.LOW", "is no class or function"),
        (3, "wants the dotted name of a class, got 3"),
    ],
)
def test_what_may_not_be_built(target, message: str) -> None:
    nested = OmegaConf.create({"outer": {"_target_": f"{PARTS}.Model", "gate": [{"_target_": target}]}})
    with pytest.raises(ConfigError) as raised:
        build(nested.outer)
    told = str(raised.value)
    assert told.startswith("outer.gate.0._target_: ")
    assert message.replace("set RET_LIGHTNING_TARGETS", "RET_LIGHTNING_TARGETS=<its name>") in told
    assert "\n" not in told


def test_what_is_refused_is_not_imported(tmp_path, monkeypatch) -> None:
    (tmp_path / "unwanted_part.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="may not build"):
        build(OmegaConf.create({"_target_": "unwanted_part.Part"}))
    assert "unwanted_part" not in sys.modules


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("torch.nn.utils.clip_grad_norm_", "of a library it may build classes, not call functions"),
        ("torch.nn.modules.module.OrderedDict", "it is a name for something in collections"),
        ("lightning.pytorch.callbacks.ModelCheckpoint.load_state_dict", "may build classes, not call functions"),
    ],
)
def test_of_a_library_only_its_own_classes_are_built(target: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(OmegaConf.create({"_target_": target}))


@pytest.mark.slow
def test_classes_of_the_libraries_are_built() -> None:
    import torch

    layer = build(OmegaConf.create({"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}))
    assert type(layer) is torch.nn.Linear
    make = build(OmegaConf.create({"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 0.5, "betas": [0.5, 0.6]}))
    optimizer = make(layer.parameters())
    assert optimizer.param_groups[0]["params"][0] is layer.weight
    with pytest.raises(ConfigError, match=r"cannot be built: ValueError: Invalid learning rate: -1"):
        build(
            OmegaConf.create({"optimizer": {"_target_": "torch.optim.AdamW", "lr": -1}}).optimizer, layer.parameters()
        )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_target_": f"{PARTS}.Gate"}, rf"part \({PARTS}.Gate\): cannot be built: TypeError: .*'hidden'"),
        ({"_target_": f"{PARTS}.Gate", "hidden": 1, "hiden": 2}, r"unexpected keyword argument 'hiden'"),
        (
            {"_target_": f"{PARTS}.Optimizer", "params": [], "lr": -1},
            r"ValueError: negative rate -1; HYDRA_FULL_ERROR=1",
        ),
        (
            {"_target_": f"{PARTS}.Model", "gate": {"_target_": f"{PARTS}.Optimizer", "params": [], "lr": -1}},
            r"part\.gate: cannot be built: ValueError: negative rate -1",
        ),
        ({"_target_": f"{PARTS}.Gate", "hidden": "${size}"}, r"part .*: Interpolation key 'size' not found"),
    ],
)
def test_what_goes_wrong_inside_is_one_line_with_the_key(config, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        build(OmegaConf.create({"part": config}).part)
    assert "\n" not in str(raised.value)
    assert raised.value.__cause__ is not None


@pytest.mark.parametrize("nested", [False, True])
def test_a_users_error_inside_comes_out_as_it_is(nested: bool) -> None:
    corpus = {"_target_": f"{PARTS}.Corpus", "root": "m2kr"}
    config = {"_target_": f"{PARTS}.Model", "gate": corpus} if nested else corpus
    with pytest.raises(DataError) as raised:
        build(OmegaConf.create({"part": config}).part)
    assert str(raised.value) == "m2kr/rows.jsonl:3: no question"

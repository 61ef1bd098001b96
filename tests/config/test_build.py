"""Objects built from configs, refused targets, and errors of constructors in one line."""

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


def test_nested_targets_are_built() -> None:
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


def test_containers_are_converted_to_plain_ones() -> None:
    config = OmegaConf.create({"_target_": f"{PARTS}.Trainer", "callbacks": [{"a": [1]}]})
    assert type(build(config).callbacks) is list
    assert type(build(config).callbacks[0]) is dict
    assert type(build(config).callbacks[0]["a"]) is list


def test_mappings_and_lists_of_targets_are_built() -> None:
    gate = {"_target_": f"{PARTS}.Gate", "hidden": 1}
    named = build(OmegaConf.create({"first": gate, "none": None, "number": 3}))
    assert type(named) is dict
    assert [type(value) for value in named.values()] == [config_targets.Gate, type(None), int]
    assert [type(item) for item in build(OmegaConf.create([gate, gate]))] == [config_targets.Gate, config_targets.Gate]
    assert build(OmegaConf.create({})) == {}
    assert build(None) is None


def test_partial_accepts_further_arguments() -> None:
    config = OmegaConf.create({"_target_": f"{PARTS}.Optimizer", "_partial_": True, "lr": 0.5})
    weights = [object()]
    optimizer = build(config)(weights)
    assert optimizer.lr == 0.5
    assert optimizer.params is weights
    assert isinstance(build(config, weights), partial)
    assert build(config, weights)().params is weights


def test_arguments_are_not_copied() -> None:
    weights = {"w": object()}
    config = OmegaConf.create({"_target_": f"{PARTS}.Optimizer", "lr": 0.5})
    assert build(config, weights).params is weights
    assert build(config, params=weights).params is weights
    assert build(config, weights, lr=2.0).lr == 2.0


def test_arguments_require_a_target() -> None:
    with pytest.raises(ValueError, match="has no _target_"):
        build(OmegaConf.create({"a": {"b": 1}}).a, 3)


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("os.system", "target-not-allowed"),
        ("builtins.eval", "target-not-allowed"),
        ("subprocess.Popen", "target-not-allowed"),
        ("torch.load", "target-not-allowed"),
        ("torch.hub.load", "target-not-allowed"),
        ("torch.distributed.elastic.multiprocessing.SubprocessHandler", "target-not-allowed"),
        ("hydra.utils.get_method", "target-not-allowed"),
        ("torchvision.models.resnet18", "target-not-allowed"),
        ("testsuite.Part", "target-not-allowed"),
        ("unbuildable.Part", "target-not-allowed"),
        ("ret_lightning.errors.os.system", "target-import-failed"),
        ("ret_lightning.config.targets.allowed_targets.os.system", "target-from-elsewhere"),
        ("ret_lightning.config.checker.yaml_files.Path", "target-from-elsewhere"),
        (f"{PARTS}.Gat", "target-import-failed"),
        (f"{PARTS}.Level.LOW", "target-not-callable"),
        (3, "target-not-text"),
    ],
)
def test_target_is_refused(target: object, code: str) -> None:
    nested = OmegaConf.create({"outer": {"_target_": f"{PARTS}.Model", "gate": [{"_target_": target}]}})
    with pytest.raises(ConfigError) as raised:
        build(nested.outer)
    error = raised.value
    assert (error.code, error.key, error.found) == (code, "outer.gate.0._target_", str(target))
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("target", "module"),
    [
        ("ret_lightning.config.targets.allowed_targets.os.system", "posix"),
        ("ret_lightning.config.checker.yaml_files.Path", "pathlib"),
    ],
)
def test_refusal_names_the_defining_module(target: str, module: str) -> None:
    with pytest.raises(ConfigError) as raised:
        build(OmegaConf.create({"_target_": target}))
    assert raised.value.module == module


def test_refusal_names_the_environment_variable() -> None:
    with pytest.raises(ConfigError) as raised:
        build(OmegaConf.create({"_target_": "unbuildable.Part"}))
    assert f"{OWN_PACKAGES}=<package>" in raised.value.message


def test_refused_target_is_not_imported(tmp_path, monkeypatch) -> None:
    (tmp_path / "unwanted_part.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError) as raised:
        build(OmegaConf.create({"_target_": "unwanted_part.Part"}))
    assert raised.value.code == "target-not-allowed"
    assert "unwanted_part" not in sys.modules


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("torch.nn.utils.clip_grad_norm_", "target-library-function"),
        ("torch.nn.modules.module.OrderedDict", "target-from-elsewhere"),
        ("lightning.pytorch.callbacks.ModelCheckpoint.load_state_dict", "target-library-function"),
    ],
)
def test_only_classes_of_a_library_are_built(target: str, code: str) -> None:
    with pytest.raises(ConfigError) as raised:
        build(OmegaConf.create({"_target_": target}))
    assert (raised.value.code, raised.value.found) == (code, target)


@pytest.mark.slow
def test_library_classes_are_built() -> None:
    import torch

    layer = build(OmegaConf.create({"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}))
    assert type(layer) is torch.nn.Linear
    make = build(OmegaConf.create({"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 0.5, "betas": [0.5, 0.6]}))
    optimizer = make(layer.parameters())
    assert optimizer.param_groups[0]["params"][0] is layer.weight
    with pytest.raises(ConfigError) as raised:
        build(
            OmegaConf.create({"optimizer": {"_target_": "torch.optim.AdamW", "lr": -1}}).optimizer, layer.parameters()
        )
    assert (raised.value.code, raised.value.key) == ("target-build-failed", "optimizer")
    assert raised.value.reason == "ValueError: Invalid learning rate: -1"


@pytest.mark.parametrize(
    ("config", "key", "reason"),
    [
        ({"_target_": f"{PARTS}.Gate"}, "part", "'hidden'"),
        ({"_target_": f"{PARTS}.Gate", "hidden": 1, "hiden": 2}, "part", "unexpected keyword argument 'hiden'"),
        ({"_target_": f"{PARTS}.Optimizer", "params": [], "lr": -1}, "part", "ValueError: negative rate -1"),
        (
            {"_target_": f"{PARTS}.Model", "gate": {"_target_": f"{PARTS}.Optimizer", "params": [], "lr": -1}},
            "part.gate",
            "ValueError: negative rate -1",
        ),
        ({"_target_": f"{PARTS}.Gate", "hidden": "${size}"}, "part", "Interpolation key 'size' not found"),
    ],
)
def test_failed_constructor_has_key_and_reason(config: dict, key: str, reason: str) -> None:
    with pytest.raises(ConfigError) as raised:
        build(OmegaConf.create({"part": config}).part)
    assert (raised.value.code, raised.value.key) == ("target-build-failed", key)
    assert reason in raised.value.reason
    assert "\n" not in str(raised.value)
    assert raised.value.__cause__ is not None


@pytest.mark.parametrize("nested", [False, True])
def test_user_error_of_a_constructor_is_raised_unchanged(nested: bool) -> None:
    corpus = {"_target_": f"{PARTS}.Corpus", "root": "m2kr"}
    config = {"_target_": f"{PARTS}.Model", "gate": corpus} if nested else corpus
    with pytest.raises(DataError) as raised:
        build(OmegaConf.create({"part": config}).part)
    assert str(raised.value) == "m2kr/rows.jsonl:3: no question"

"""Targets that a config may build, by name and by defining module."""

from __future__ import annotations

import subprocess
from contextlib import nullcontext

import pytest
import torch
import torchmetrics
from lightning.pytorch.callbacks import ModelCheckpoint

from ret_lightning.config.targets.allowed_targets import (
    OWN_PACKAGES,
    allow_list,
    check_target_name,
    check_target_origin,
    hydra_allow_list,
    is_in,
    own_packages,
)


@pytest.fixture(autouse=True)
def _no_own_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(OWN_PACKAGES, raising=False)


@pytest.mark.parametrize(
    "target", ["ret_lightning.models.LSTMGate", "torch.optim.AdamW", "lightning.Trainer", "torchmetrics.Accuracy"]
)
def test_listed_targets_are_allowed(target: str) -> None:
    assert check_target_name(target) is None


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.Popen",
        "torch.load",
        "torch.optimizers.AdamW",
        "ret_lightning_evil.Gate",
        "builtins.eval",
    ],
)
def test_other_targets_are_refused(target: str) -> None:
    error = check_target_name(target)
    assert error is not None
    assert (error.code, error.found) == ("target-not-allowed", target)
    assert "torch.optim" in error.allowed


def test_misspelt_library_part_is_suggested() -> None:
    assert "did you mean torch.optim.AdamW?" in check_target_name("torch.optm.AdamW").message


def test_environment_allows_own_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OWN_PACKAGES, " mine , ,theirs.parts")
    assert own_packages() == ("mine", "theirs.parts")
    assert check_target_name("mine.Gate") is None
    assert check_target_name("theirs.parts.Gate") is None
    assert check_target_name("theirs.others.Gate").code == "target-not-allowed"
    assert check_target_origin("mine.popen", "subprocess", is_class=False) is None


@pytest.mark.parametrize("built", [torch.optim.AdamW, torch.nn.Linear, torchmetrics.MeanMetric, ModelCheckpoint])
def test_library_classes_are_allowed(built: type) -> None:
    assert check_target_origin(f"{built.__module__}.{built.__name__}", built.__module__, is_class=True) is None


def test_class_of_another_module_is_refused() -> None:
    error = check_target_origin("torch.nn.utils.Popen", subprocess.Popen.__module__, is_class=True)
    assert (error.code, error.module) == ("target-from-elsewhere", "subprocess")


def test_only_functions_of_this_package_are_allowed() -> None:
    assert (
        check_target_origin("ret_lightning.models.build_retriever", "ret_lightning.models.retriever", is_class=False)
        is None
    )
    function = torch.nn.init.ones_
    error = check_target_origin("torch.nn.init.ones_", function.__module__, is_class=False)
    assert error.code == "target-library-function"


def test_is_in_compares_whole_parts() -> None:
    assert is_in("torch.nn", ("torch.nn",))
    assert is_in("torch.nn.Linear", ("torch.optim", "torch.nn"))
    assert not is_in("torch.nnx.Linear", ("torch.nn",))
    assert not is_in("torch", ("torch.nn",))


def test_allow_list_is_passed_to_hydra(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_list(config: object, _execution_whitelist_: object = None) -> None: ...

    def without_list(config: object, **kwargs: object) -> None: ...

    monkeypatch.setattr("hydra.utils.instantiate", with_list)
    assert allow_list(["a.B"]) == {"_execution_whitelist_": ["a.B"]}
    monkeypatch.setattr("hydra.utils.instantiate", without_list)
    assert allow_list(["a.B"]) == {}


def test_hydra_allow_list_has_own_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[str] = []
    monkeypatch.setenv(OWN_PACKAGES, "my_package")
    monkeypatch.setattr(
        "hydra.utils.execution_whitelist", lambda names: listed.extend(names) or nullcontext(), raising=False
    )
    with hydra_allow_list():
        assert {"my_package.*", "ret_lightning.*", "hydra.*", "logging.*"} <= set(listed)
        assert not any(name.startswith(("os", "builtins", "subprocess")) for name in listed)
    monkeypatch.delattr("hydra.utils.execution_whitelist")
    with hydra_allow_list():
        pass

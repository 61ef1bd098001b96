"""What a config may build: by its name, and by where its object was written."""

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
    built_refusal,
    hydra_allow_list,
    is_in,
    own_packages,
    target_refusal,
)


@pytest.fixture(autouse=True)
def _no_own_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(OWN_PACKAGES, raising=False)


@pytest.mark.parametrize(
    "target", ["ret_lightning.models.LSTMGate", "torch.optim.AdamW", "lightning.Trainer", "torchmetrics.Accuracy"]
)
def test_listed_targets_are_allowed(target: str) -> None:
    assert target_refusal(target) is None


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
    error = target_refusal(target)
    assert error is not None
    assert (error.code, error.found) == ("target-not-allowed", target)
    assert "torch.optim" in error.allowed


def test_misspelt_library_part_is_suggested() -> None:
    assert "did you mean torch.optim.AdamW?" in target_refusal("torch.optm.AdamW").message


def test_environment_allows_own_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OWN_PACKAGES, " mine , ,theirs.parts")
    assert own_packages() == ("mine", "theirs.parts")
    assert target_refusal("mine.Gate") is None
    assert target_refusal("theirs.parts.Gate") is None
    assert target_refusal("theirs.others.Gate").code == "target-not-allowed"
    assert built_refusal("mine.popen", "subprocess", is_class=False) is None


@pytest.mark.parametrize("built", [torch.optim.AdamW, torch.nn.Linear, torchmetrics.MeanMetric, ModelCheckpoint])
def test_classes_of_listed_libraries_are_built(built: type) -> None:
    assert built_refusal(f"{built.__module__}.{built.__name__}", built.__module__, is_class=True) is None


def test_class_that_a_listed_module_imported_is_refused() -> None:
    error = built_refusal("torch.nn.utils.Popen", subprocess.Popen.__module__, is_class=True)
    assert (error.code, error.module) == ("target-from-elsewhere", "subprocess")


def test_functions_are_called_of_this_package_only() -> None:
    assert (
        built_refusal("ret_lightning.models.build_retriever", "ret_lightning.models.retriever", is_class=False) is None
    )
    function = torch.nn.init.ones_
    error = built_refusal("torch.nn.init.ones_", function.__module__, is_class=False)
    assert error.code == "target-library-function"


def test_name_is_inside_whole_parts_only() -> None:
    assert is_in("torch.nn", ("torch.nn",))
    assert is_in("torch.nn.Linear", ("torch.optim", "torch.nn"))
    assert not is_in("torch.nnx.Linear", ("torch.nn",))
    assert not is_in("torch", ("torch.nn",))


def test_hydra_with_an_allow_list_gets_the_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_list(config: object, _execution_whitelist_: object = None) -> None: ...

    def without_list(config: object, **kwargs: object) -> None: ...

    monkeypatch.setattr("hydra.utils.instantiate", with_list)
    assert allow_list(["a.B"]) == {"_execution_whitelist_": ["a.B"]}
    monkeypatch.setattr("hydra.utils.instantiate", without_list)
    assert allow_list(["a.B"]) == {}


def test_hydra_builds_what_the_user_allows(monkeypatch: pytest.MonkeyPatch) -> None:
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

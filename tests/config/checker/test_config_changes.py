"""Changes of a stored config on the command line: the resulting config, and refused changes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import hydra
import pytest
from omegaconf import DictConfig, OmegaConf

from ret_lightning.config.checker.config_changes import StoredConfig, check_changes
from ret_lightning.config.checker.config_check import CheckResult
from ret_lightning.config.config_errors import KeyedError
from ret_lightning.config.targets.allowed_targets import OWN_PACKAGES
from ret_lightning.errors import ConfigError
from tests.support.config_folder import write
from tests.support.config_targets import Schema


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DictConfig:
    """The composed config of a run with changed values, and without a key of a later version."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(OWN_PACKAGES, "tests")
    with hydra.initialize_config_dir(str(write(tmp_path / "conf")), version_base="1.3"):
        config = OmegaConf.create(OmegaConf.to_container(hydra.compose("train", ["seed=5", "model.width=32"])))
    del config.logger
    return config


def changed(stored: DictConfig, *overrides: str, multirun: bool = False) -> CheckResult:
    def refused(before: DictConfig, after: DictConfig) -> Iterable[KeyedError]:
        if before.model != after.model:
            yield "model.width", ConfigError("may not change", code="frozen")

    base = StoredConfig(stored, Path("runs/old/config.yaml"), ("resume",), refused)
    search_path = [f"file://{Path.cwd() / 'conf'}"]
    return check_changes(base, search_path, "train", overrides, Schema, multirun=multirun)


def problem_keys(result: CheckResult) -> list[tuple[str, str, str]]:
    return [(problem.source, problem.key, problem.code) for problem in result.problems]


def test_stored_values_are_kept(stored: DictConfig) -> None:
    before = OmegaConf.to_container(stored)
    result = changed(stored, "resume=runs/old", "trainer.max_epochs=9", "optimizer.lr=0.5")
    assert problem_keys(result) == []
    expected = OmegaConf.to_container(stored)
    expected["trainer"]["max_epochs"], expected["optimizer"]["lr"] = 9, 0.5
    found = OmegaConf.to_container(result.config)
    assert found.pop("logger").keys() == {"csv"}  # a missing key gets its default
    assert found == expected
    assert (found["seed"], found["model"]["width"]) == (5, 32)
    assert OmegaConf.to_container(stored) == before


def test_group_is_composed_from_its_file(stored: DictConfig) -> None:
    (Path("conf/trainer/gpu.yaml")).write_text("_target_: tests.support.config_targets.Trainer\nmax_epochs: 4\n")
    result = changed(stored, "trainer=gpu")
    assert problem_keys(result) == []
    assert OmegaConf.to_container(result.config.trainer) == {
        "_target_": "tests.support.config_targets.Trainer",
        "max_epochs": 4,
    }


@pytest.mark.parametrize(
    ("override", "key", "code"),
    [
        ("model.width=8", "model.width", "frozen"),
        ("experiment=demo", "experiment", "stored-config-group"),
        ("trainer.max_epoch=3", "trainer.max_epoch", "unknown-parameter"),
        ("trainer.max_epochs=x", "trainer.max_epochs", "value-of-wrong-type"),
    ],
)
def test_refused_change_names_its_override(stored: DictConfig, override: str, key: str, code: str) -> None:
    assert problem_keys(changed(stored, override)) == [(f"command line: {override}", key, code)]


def test_sweep_of_a_stored_config_is_refused(stored: DictConfig) -> None:
    assert [code for *_, code in problem_keys(changed(stored, multirun=True))] == ["stored-config-multirun"]
    assert len(problem_keys(changed(stored, "seed=1,2"))) == 1

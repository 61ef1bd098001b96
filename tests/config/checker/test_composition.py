"""Composition of a config with all problems, compared with hydra.compose."""

from __future__ import annotations

from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

from ret_lightning.config.checker.composition import Composer, Composition
from ret_lightning.config.checker.config_check import check
from ret_lightning.config.checker.overrides import command_line_source, parse
from ret_lightning.errors import ConfigError
from tests.support.config_folder import write
from tests.support.config_targets import Schema


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    hydra.version.setbase("1.3")
    return write(tmp_path / "conf")


def composed(folder: Path, *overrides: str, name: str = "train") -> Composition:
    parsed, unreadable = parse(overrides, [command_line_source(line) for line in overrides])
    assert not unreadable
    return Composer([f"file://{folder}"], name, parsed).compose(parsed, multirun=False)


def hydra_config(folder: Path, *overrides: str) -> dict:
    with hydra.initialize_config_dir(str(folder), version_base="1.3"):
        return OmegaConf.to_container(hydra.compose("train", list(overrides)))


def problem_codes(result: Composition) -> list[tuple[str, str]]:
    return [(problem.key, problem.code) for problem in result.problems]


def own_keys(result: Composition) -> dict:
    return {key: value for key, value in OmegaConf.to_container(result.config).items() if key != "hydra"}


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["output_dir=x", "model.width=16", "+model.extra={a: 1}", "~seed"],
        ["gate@model.gate=none", "trainer.max_epochs=7"],
        ["experiment=demo", "~optimizer"],
        ["+gate@model.second=lstm", "++seed=2"],
        ["logger=none"],
    ],
)
def test_config_equals_that_of_hydra(folder: Path, overrides: list[str]) -> None:
    result = composed(folder, *overrides)
    assert (result.problems, result.refused, result.is_complete, result.unknown_paths) == ([], [], True, set())
    assert own_keys(result) == hydra_config(folder, *overrides)


def test_settings_of_the_job_are_set(folder: Path) -> None:
    result = composed(folder, "seed=3", "hydra.run.dir=elsewhere", "gate@model.gate=none")
    assert result.config.hydra.overrides.task == ["seed=3", "gate@model.gate=none"]
    assert result.config.hydra.overrides.hydra == ["hydra.run.dir=elsewhere"]
    assert result.config.hydra.runtime.choices["gate@model.gate"] == "none"
    assert (result.config.hydra.run.dir, result.config.hydra.job.config_name) == ("elsewhere", "train")
    assert [file.package for file in result.files if file.package] == [
        ("model",), ("model", "gate"), ("trainer",), ("optimizer",), ("logger",),
    ]  # fmt: skip


def test_misspelt_option_is_replaced_by_the_nearest(folder: Path) -> None:
    result = composed(folder, "gate@model.gate=nonne", "seed=3")
    assert problem_codes(result) == [("gate@model.gate", "unknown-option")]
    assert own_keys(result) == hydra_config(folder, "gate@model.gate=none", "seed=3")
    assert result.is_complete


@pytest.mark.parametrize(
    ("overrides", "errors", "whole"),
    [
        (["gate@model.gate=zzz"], [("gate@model.gate", "unknown-option")], False),
        (["gtae/x=lstm", "seed=3"], [("gtae/x", "unknown-group")], True),
        (["experiment@model.gate=demo"], [("experiment@model.gate", "overridden-group-missing")], True),
        (["~gate"], [("gate", "deleted-group-missing")], True),
        (["+gate@model.gate=none"], [("gate@model.gate", "group-added-twice")], True),
    ],
)
def test_rest_of_the_config_is_composed(folder: Path, overrides: list[str], errors: list, whole: bool) -> None:
    result = composed(folder, *overrides)
    assert problem_codes(result) == errors
    assert result.is_complete == whole
    assert result.config.optimizer == hydra_config(folder)["optimizer"]


def test_refused_override_changes_nothing(folder: Path) -> None:
    result = composed(folder, "model.wdith=3", "seed=3", "+logger.csv.save_dir.below=1")
    assert [(override.input_line, error.code) for override, error in result.refused] == [
        ("model.wdith=3", "override-refused"),
        ("+logger.csv.save_dir.below=1", "key-below-interpolation"),
    ]
    assert own_keys(result) == hydra_config(folder, "seed=3")


def test_file_that_cannot_be_merged_is_dropped(folder: Path) -> None:
    write(folder, {"trainer/cpu": "- 1\n", "model/small": "width: 9\n"})
    result = composed(folder)
    assert [(problem.source, problem.code) for problem in result.problems] == [
        ("conf/trainer/cpu.yaml", "config-unreadable")
    ]
    assert result.config.model.width == 9
    assert "trainer" not in result.config or not result.config.trainer
    assert not result.is_complete


def test_unknown_config_names_the_others(folder: Path) -> None:
    result = composed(folder, name="trian")
    assert result.config is None
    (problem,) = result.problems
    assert (problem.code, problem.error.found) == ("unknown-config-name", "trian")
    assert "train" in problem.error.message


def test_composer_can_be_reused(folder: Path) -> None:
    composer = Composer([f"file://{folder}"], "train", [])
    for overrides in (["seed=3"], ["gate@model.gate=none"], []):
        parsed, _ = parse(overrides, overrides)
        assert own_keys(composer.compose(parsed, multirun=False)) == hydra_config(folder, *overrides)


@pytest.mark.parametrize("prefix", ["", "+", "++", "~"])
def test_key_below_an_interpolation_is_refused(check_folder, prefix: str) -> None:
    """Hydra would replace the interpolation by a mapping with this key only."""
    files = {"logger/csv": "csv: ${logger.other}\nother: {_target_: tests.support.config_targets.Log, save_dir: x}"}
    override = f"{prefix}logger.csv.save_dir" + ("" if prefix == "~" else "=y")
    (problem,) = check_folder.result(override, files=files).problems
    assert (problem.source, problem.code) == (f"command line: {override}", "key-below-interpolation")
    assert problem.error.found == "${logger.other}"
    assert "logger.other.save_dir" in problem.error.message
    assert check_folder("logger.other.save_dir=y", files=files) == []


def test_config_of_a_group_can_extend_another(check_folder) -> None:
    files = {"model/wide": "defaults:\n  - small\nwidth: 99", "model/wider": "defaults:\n  - wide\nwidht: 199"}
    assert check_folder("model=wide", files=files) == []
    (problem,) = check_folder.result("model=wider", files=files).problems
    assert (problem.source, problem.key, problem.code) == (
        "conf/model/wider.yaml:3",
        "model.widht",
        "unknown-parameter",
    )


def test_unknown_primary_config_is_a_problem(tmp_path) -> None:
    hydra.version.setbase("1.3")
    folder = write(tmp_path / "conf")
    (problem,) = check([f"file://{folder}"], "trian", [], Schema).problems
    assert (problem.source, problem.code) == ("command line: --config-name trian", "unknown-config-name")
    assert "train?" in problem.error.message


@pytest.mark.parametrize(("value", "found"), [("conf", "conf"), ("[conf,3]", ["conf", 3]), ("{a: b}", {"a": "b"})])
def test_search_path_must_be_a_list(folder: Path, value: str, found: object) -> None:
    with pytest.raises(ConfigError) as caught:
        composed(folder, f"hydra.searchpath={value}")
    assert (caught.value.code, caught.value.key, caught.value.found) == (
        "search-path-no-list",
        "hydra.searchpath",
        found,
    )

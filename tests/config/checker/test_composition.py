"""Composing a config and collecting its errors, against hydra.compose."""

from __future__ import annotations

from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

from ret_lightning.config.checker.composition import Composer, Composition
from ret_lightning.config.checker.config_check import check
from ret_lightning.config.checker.overrides import on_command_line, parse
from tests.support.config_folder import line_of, write
from tests.support.config_targets import Schema


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    hydra.version.setbase("1.3")
    return write(tmp_path / "conf")


def composed(folder: Path, *overrides: str, name: str = "train") -> Composition:
    parsed, unreadable = parse(overrides, [on_command_line(line) for line in overrides])
    assert not unreadable
    return Composer([f"file://{folder}"], name, parsed).compose(parsed, multirun=False)


def by_hydra(folder: Path, *overrides: str) -> dict:
    with hydra.initialize_config_dir(str(folder), version_base="1.3"):
        return OmegaConf.to_container(hydra.compose("train", list(overrides)))


def told(result: Composition) -> list[tuple[str, str]]:
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
def test_config_is_that_of_hydra(folder: Path, overrides: list[str]) -> None:
    result = composed(folder, *overrides)
    assert (result.problems, result.refused, result.whole, result.unsure) == ([], [], True, set())
    assert own_keys(result) == by_hydra(folder, *overrides)


def test_settings_of_the_job_are_filled_in(folder: Path) -> None:
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
    assert told(result) == [("gate@model.gate", "unknown-option")]
    assert own_keys(result) == by_hydra(folder, "gate@model.gate=none", "seed=3")
    assert result.whole


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
def test_error_leaves_the_rest_of_the_config(folder: Path, overrides: list[str], errors: list, whole: bool) -> None:
    result = composed(folder, *overrides)
    assert told(result) == errors
    assert result.whole == whole
    assert result.config.optimizer == by_hydra(folder)["optimizer"]


def test_refused_override_changes_nothing(folder: Path) -> None:
    result = composed(folder, "model.wdith=3", "seed=3", "+logger.csv.save_dir.below=1")
    assert [(override.input_line, error.code) for override, error in result.refused] == [
        ("model.wdith=3", "override-refused"),
        ("+logger.csv.save_dir.below=1", "key-below-interpolation"),
    ]
    assert own_keys(result) == by_hydra(folder, "seed=3")


def test_file_that_does_not_fit_is_left_out(folder: Path) -> None:
    write(folder, {"trainer/cpu": "- 1\n", "model/small": "width: 9\n"})
    result = composed(folder)
    assert [(problem.source, problem.code) for problem in result.problems] == [
        ("conf/trainer/cpu.yaml", "config-unreadable")
    ]
    assert result.config.model.width == 9
    assert "trainer" not in result.config or not result.config.trainer
    assert not result.whole


def test_unknown_config_names_the_others(folder: Path) -> None:
    result = composed(folder, name="trian")
    assert result.config is None
    (problem,) = result.problems
    assert (problem.code, problem.error.found) == ("unknown-config-name", "trian")
    assert "train" in problem.error.message


def test_composer_is_used_again(folder: Path) -> None:
    composer = Composer([f"file://{folder}"], "train", [])
    for overrides in (["seed=3"], ["gate@model.gate=none"], []):
        parsed, _ = parse(overrides, overrides)
        assert own_keys(composer.compose(parsed, multirun=False)) == by_hydra(folder, *overrides)


@pytest.mark.parametrize("prefix", ["", "+", "++", "~"])
def test_a_key_below_an_interpolation_is_set_where_it_leads(check_folder, prefix: str) -> None:
    """Hydra would put a mapping with that one key in the interpolation's place, and what is built would be gone."""
    files = {"logger/csv": "csv: ${logger.other}\nother: {_target_: tests.support.config_targets.Log, save_dir: x}"}
    override = f"{prefix}logger.csv.save_dir" + ("" if prefix == "~" else "=y")
    (told,) = check_folder(override, files=files)
    assert told == f"command line: {override}: logger.csv is ${{logger.other}}; set logger.other.save_dir in its place"
    assert check_folder("logger.other.save_dir=y", files=files) == []


def test_files_of_a_group_may_build_on_each_other(check_folder) -> None:
    files = {"model/wide": "defaults:\n  - small\nwidth: 99", "model/wider": "defaults:\n  - wide\nwidht: 199"}
    assert check_folder("model=wide", files=files) == []
    (told,) = check_folder("model=wider", files=files)
    assert told.startswith(
        "conf/model/wider.yaml:3: model.widht: tests.support.config_targets.Model has no parameter widht;"
    )


def test_an_unknown_primary_config_names_the_others(tmp_path) -> None:
    hydra.version.setbase("1.3")
    folder = write(tmp_path / "conf")
    verdict = check([f"file://{folder}"], "trian", [], Schema)
    (told,) = map(line_of, verdict.problems)
    assert told == "command line: --config-name trian: no config has this name; did you mean train? choices: train"

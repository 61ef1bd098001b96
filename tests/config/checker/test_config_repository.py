"""Configs that Hydra finds, and problems of files that cannot be loaded."""

from __future__ import annotations

from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

from ret_lightning.config.checker.config_repository import Repository, package_path
from tests.support.config_folder import FILES, write
from tests.support.paths import CONF


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    hydra.version.setbase("1.3")
    return write(tmp_path / "conf")


def repository(folder: Path) -> Repository:
    return Repository([f"file://{folder}"])


def problem_codes(found: Repository) -> list[tuple[str, str, str]]:
    return [(problem.source, problem.key, problem.code) for problem in found.problems]


def test_groups_and_options_are_folders_and_files(folder: Path) -> None:
    found = repository(folder)
    assert set(found.groups()) == {path.partition("/")[0] for path in FILES if "/" in path}
    assert found.options("gate") == sorted(path.stem for path in (folder / "gate").iterdir())
    assert found.options("") == ["train"]
    assert found.options("nowhere") == []


@pytest.mark.parametrize("name", FILES)
def test_valid_file_is_loaded_unchanged(folder: Path, name: str) -> None:
    found = repository(folder)
    assert found.load_config(name).config == OmegaConf.load(folder / f"{name}.yaml")
    assert (found.problems, found.is_complete) == ([], True)


@pytest.mark.parametrize(
    ("content", "source", "code"),
    [
        ("hidden: [1\n", "conf/gate/lstm.yaml:2", "broken-yaml"),
        ("hidden: 1\nhidden: 2\n", "conf/gate/lstm.yaml:2", "broken-yaml"),
        ("- 1\n", "conf/gate/lstm.yaml", "config-unreadable"),
        ("hidden: ${a\n", "conf/gate/lstm.yaml:1", "interpolation-unreadable"),
    ],
)
def test_invalid_file_is_loaded_as_empty(folder: Path, content: str, source: str, code: str) -> None:
    (folder / "gate/lstm.yaml").write_text(content)
    found = repository(folder)
    for _ in range(2):  # the file is read once and causes one problem
        assert found.load_config("gate/lstm").config == {}
    assert problem_codes(found) == [(source, "", code)]
    assert not found.is_complete


@pytest.mark.parametrize(
    ("entry", "defaults", "code", "whole"),
    [
        ("- gate@model.gate: lst", [{"/gate@model.gate": "lstm"}], "unknown-option", True),
        ("- gate@model.gate: zzz", [], "unknown-option", False),
        ("- override gate@model.gate: zzz", [], "unknown-option", True),
        ("- gaet@model.gate: lstm", [], "unknown-group", False),
        ("- gate/zzz", [], "unknown-config", False),
        ("- optional gate@model.gate: zzz", [{"optional gate@model.gate": "zzz"}], None, True),
        ("- gate@model.gate: ???", [{"gate@model.gate": "???"}], None, True),
    ],
)
def test_invalid_entry_of_a_defaults_list(
    folder: Path, entry: str, defaults: list, code: str | None, whole: bool
) -> None:
    (folder / "train.yaml").write_text(f"defaults:\n  - _self_\n  {entry}\n")
    found = repository(folder)
    assert found.load_config("train").config.defaults == ["_self_", *defaults]
    assert problem_codes(found) == ([] if code is None else [("conf/train.yaml:3", "defaults", code)])
    assert found.is_complete == whole


def test_sources_of_keys(folder: Path) -> None:
    found = repository(folder)
    found.load_config("train")
    lines = (folder / "train.yaml").read_text().splitlines()
    line = {text.strip(): number for number, text in enumerate(lines, 1)}
    assert found.source_of("train", "seed") == f"conf/train.yaml:{line['seed: 1']}"
    assert found.source_of("train", "hydra.sweep.dir") == f"conf/train.yaml:{line['dir: ${output_dir}/sweep']}"
    assert found.source_of("train", "nowhere") == "conf/train.yaml"
    assert found.source_of("not/loaded") == "not/loaded"


def test_dropped_entry_of_a_defaults_list(folder: Path) -> None:
    found = repository(folder)
    before = found.load_config("train").config.defaults
    assert found.drop_default("train", "gate@model.gate") == "conf/train.yaml:4"
    assert found.load_config("train").config.defaults == [each for each in before if "gate@model.gate" not in each]
    assert found.drop_default("train", "gate@model.gate") is None
    assert found.drop_default("not/loaded", "gate") is None


def test_dropped_file_has_no_content(folder: Path) -> None:
    found = repository(folder)
    assert not found.drop("train", hydra_only=True)  # not loaded
    found.load_config("train")
    assert found.drop("train", hydra_only=True)
    assert "hydra" not in found.load_config("train").config
    assert found.is_complete
    assert not found.drop("train", hydra_only=True)
    assert found.drop("train", hydra_only=False)
    assert found.load_config("train").config == {}
    assert not found.is_complete


def test_first_folder_takes_precedence(folder: Path) -> None:
    found = Repository([f"file://{folder}", "pkg://ret_lightning.conf", "pkg://no_such_package"])
    assert found.file_of("gate/lstm") == folder / "gate/lstm.yaml"
    assert found.file_of("gate/scalar").samefile(CONF / "gate/scalar.yaml")
    assert found.file_of("gate/nowhere") is None


def test_package_path_of_a_group() -> None:
    assert package_path(None, "model/gate") == ("model", "gate")
    assert package_path("model.inner", "gate") == ("model", "inner")


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"\xff\xfe\x00", "config-not-utf8"),
        (b"- 1\n", "config-unreadable"),
        (b"words\n", "config-unreadable"),
        (b"seed: 3\n", "package-unknown"),
    ],
)
def test_file_that_is_not_an_experiment(check_folder, content: bytes, code: str) -> None:
    (problem,) = check_folder.result("experiment=demo", files={"experiment/demo": content}).problems
    assert (problem.source, problem.code) == ("conf/experiment/demo.yaml", code)

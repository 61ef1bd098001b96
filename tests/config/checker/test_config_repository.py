"""The configs that Hydra finds, and what becomes of those that it cannot load."""

from __future__ import annotations

from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

from ret_lightning.config.checker.config_repository import Repository, place_of
from tests.support.config_folder import FILES, write
from tests.support.paths import CONF


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    hydra.version.setbase("1.3")
    return write(tmp_path / "conf")


def repository(folder: Path) -> Repository:
    return Repository([f"file://{folder}"])


def told(found: Repository) -> list[tuple[str, str, str]]:
    return [(problem.source, problem.key, problem.code) for problem in found.problems]


def test_groups_and_options_are_the_folders_and_files(folder: Path) -> None:
    found = repository(folder)
    assert set(found.groups()) == {path.partition("/")[0] for path in FILES if "/" in path}
    assert found.options("gate") == sorted(path.stem for path in (folder / "gate").iterdir())
    assert found.options("") == ["train"]
    assert found.options("nowhere") == []


@pytest.mark.parametrize("name", FILES)
def test_sound_file_is_loaded_as_it_is(folder: Path, name: str) -> None:
    found = repository(folder)
    assert found.load_config(name).config == OmegaConf.load(folder / f"{name}.yaml")
    assert (found.problems, found.whole) == ([], True)


@pytest.mark.parametrize(
    ("content", "place", "code"),
    [
        ("hidden: [1\n", "conf/gate/lstm.yaml:2", "broken-yaml"),
        ("hidden: 1\nhidden: 2\n", "conf/gate/lstm.yaml:2", "broken-yaml"),
        ("- 1\n", "conf/gate/lstm.yaml", "config-unreadable"),
        ("hidden: ${a\n", "conf/gate/lstm.yaml:1", "interpolation-unreadable"),
    ],
)
def test_broken_file_counts_as_empty(folder: Path, content: str, place: str, code: str) -> None:
    (folder / "gate/lstm.yaml").write_text(content)
    found = repository(folder)
    for _ in range(2):  # read once, so that there is one problem
        assert found.load_config("gate/lstm").config == {}
    assert told(found) == [(place, "", code)]
    assert not found.whole


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
def test_wrong_entry_of_a_defaults_list(
    folder: Path, entry: str, defaults: list, code: str | None, whole: bool
) -> None:
    (folder / "train.yaml").write_text(f"defaults:\n  - _self_\n  {entry}\n")
    found = repository(folder)
    assert found.load_config("train").config.defaults == ["_self_", *defaults]
    assert told(found) == ([] if code is None else [("conf/train.yaml:3", "defaults", code)])
    assert found.whole == whole


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


def test_dropped_file_leaves_nothing(folder: Path) -> None:
    found = repository(folder)
    assert not found.drop("train", hydra_only=True)  # not loaded
    found.load_config("train")
    assert found.drop("train", hydra_only=True)
    assert "hydra" not in found.load_config("train").config
    assert found.whole
    assert not found.drop("train", hydra_only=True)
    assert found.drop("train", hydra_only=False)
    assert found.load_config("train").config == {}
    assert not found.whole


def test_first_folder_or_package_has_the_config(folder: Path) -> None:
    found = Repository([f"file://{folder}", "pkg://ret_lightning.conf", "pkg://no_such_package"])
    assert found.file_of("gate/lstm") == folder / "gate/lstm.yaml"
    assert found.file_of("gate/scalar").samefile(CONF / "gate/scalar.yaml")
    assert found.file_of("gate/nowhere") is None


def test_place_of_a_group() -> None:
    assert place_of(None, "model/gate") == ("model", "gate")
    assert place_of("model.inner", "gate") == ("model", "inner")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"\xff\xfe\x00", "conf/experiment/demo.yaml: not a text file in UTF-8"),
        (b"- 1\n", "conf/experiment/demo.yaml: a config holds keys and values"),
        (b"words\n", "conf/experiment/demo.yaml: a config holds keys and values"),
        (b"seed: 3\n", "conf/experiment/demo.yaml: experiment: the file's keys would go below this one"),
    ],
)
def test_a_file_that_is_no_such_config(check_folder, content: bytes, line: str) -> None:
    (told,) = check_folder("experiment=demo", files={"experiment/demo": content})
    assert told.startswith(line)

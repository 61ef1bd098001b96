"""YAML files with the line of every key, compared with OmegaConf, and files that cannot be loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ret_lightning.config.checker.yaml_files import (
    Entry,
    describe_load_error,
    first_line,
    read_yaml,
    relative_path,
    to_entry,
)
from tests.support.paths import ROOT

CONTENT = """\
# a comment
defaults:
  - _self_
  - gate@model.gate: lstm

optimizer: &adam
  lr: 1e-3  # a number to Hydra, a text to plain YAML
  betas: [0.9,
    0.99]
again:
  <<: *adam
  lr: ${optimizer.lr}
on: off
"""


def load_error(path: Path, content: str | bytes) -> tuple[str, str]:
    """Return location and code of the error of a file that OmegaConf cannot load."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(Exception) as raised:  # noqa: PT011 -- OmegaConf raises several types
        OmegaConf.load(path)
    location, error = describe_load_error(path, raised.value)
    return location, error.code


@pytest.mark.parametrize("path", sorted((ROOT / "conf").rglob("*.yaml")), ids=lambda path: path.stem)
def test_values_equal_those_of_omegaconf(path: Path) -> None:
    assert (read_yaml(path).plain() or {}) == OmegaConf.to_container(OmegaConf.load(path))


def test_every_entry_has_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "conf/a.yaml"
    file.parent.mkdir()
    file.write_text(CONTENT)
    content = read_yaml(file)
    assert content.plain() == OmegaConf.to_container(OmegaConf.load(file))
    lines = {".".join(path): int(entry.source.removeprefix("conf/a.yaml:")) for path, entry in content.walk()}
    assert content.source == "conf/a.yaml"
    assert {key: lines[key] for key in ("defaults.0", "defaults.1.gate@model.gate")} == {
        "defaults.0": 3,
        "defaults.1.gate@model.gate": 4,
    }
    assert {key: lines[key] for key in ("optimizer", "optimizer.lr", "optimizer.betas.1", "again.lr")} == {
        "optimizer": 6,
        "optimizer.lr": 7,
        "optimizer.betas.1": 9,
        "again.lr": 12,
    }
    assert lines["again.betas"] == 8  # merged: the line of the value


def test_entries_of_plain_containers() -> None:
    value = {"a": [1, {"b": None}], "c": "x"}
    entry = to_entry(value, "here")
    assert entry.plain() == value
    assert [path for path, _ in entry.walk()] == [("a",), ("a", "0"), ("a", "1"), ("a", "1", "b"), ("c",)]
    assert {each.source for _, each in entry.walk()} == {"here"}


@pytest.mark.parametrize(
    ("content", "line", "code"),
    [
        ("a: 1\nb: [1\nc: 2\n", 3, "broken-yaml"),
        ("a: 1\nb: 2\na: 3\n", 3, "broken-yaml"),
        (b"a: \xff\n", None, "config-not-utf8"),
        ("a: 1\nb:\n  c: ${a\n", 3, "interpolation-unreadable"),
    ],
)
def test_location_of_an_error(tmp_path: Path, content: str | bytes, line: int | None, code: str) -> None:
    path = tmp_path / "a.yaml"
    assert load_error(path, content) == (f"{path}:{line}" if line else str(path), code)


def test_path_is_relative_below_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert relative_path(tmp_path / "here/conf/a.yaml") == "conf/a.yaml"
    assert relative_path(Path("conf/../a.yaml")) == "a.yaml"
    assert relative_path(tmp_path / "a.yaml") == str(tmp_path / "a.yaml")


def test_first_line_of_a_message() -> None:
    assert first_line(ValueError("\n  what\nmore")) == "what"
    assert first_line(ValueError()) == "ValueError"


def test_entry_of_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("# nothing\n")
    assert read_yaml(tmp_path / "a.yaml") == Entry({}, str(tmp_path / "a.yaml"))

"""`~` in path options of the commands."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ret_lightning.config.home_folder import expand_config, expand_override

COMMANDS = {
    "train": ["data=m2kr", "data.root={path}", "output_dir=run"],
    "evaluate": ["checkpoint={path}", "output_dir=out", "data.root=."],
    "export": ["checkpoint={path}", "output=out"],
    "check": ["data=m2kr", "data.root={path}"],
    "index": ["checkpoint=./nowhere", "passages={path}", "index=out"],
    "search": ["index={path}", "query=x"],
    "report": ["runs={path}", "output=out"],
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("path", ["~/nowhere", '"~/nowhere"', "'~/nowhere'"])
def test_input_path_is_expanded(
    command: str, path: str, call: Callable[..., int], home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(command, *(option.format(path=path) for option in COMMANDS[command])) != 0
    printed = capfd.readouterr()
    assert str(home / "nowhere") in printed.err + printed.out


@pytest.mark.parametrize(
    ("command", "function", "options"),
    [
        ("export", "runs.export.export", ['checkpoint="~/made"', 'output="~/made"']),
        (
            "evaluate",
            "runs.evaluation_run.run_evaluation",
            ['checkpoint="~/made"', 'output_dir="~/made"', "data.root=~/made"],
        ),
        (
            "index",
            "search.index_builder.build_index",
            ["checkpoint=x", "passages=~/made", 'index="~/made"', "image_root=~/made"],
        ),
        ("search", "search.answer.search", ["index=~/made", "query=~/x", "image=~/made"]),
        ("report", "report.report.write_report", ['runs="~/made"', "output=~/made"]),
    ],
)
def test_task_receives_expanded_paths(
    command: str,
    function: str,
    options: list[str],
    call: Callable[..., int],
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passed: list[object] = []

    def record(*values: object, **named: object) -> tuple[()]:
        passed.extend((*values, *named.values()))
        return ()

    monkeypatch.setattr(f"ret_lightning.{function}", record)
    assert call(command, *options) == 0
    if len(passed) == 1:  # a config
        config = OmegaConf.to_container(passed[0], resolve=True)
        passed = [*config.values(), *(config.get("data") or {}).values()]
    assert passed.count(str(home / "made")) == sum("made" in option for option in options)
    assert passed.count("~/x") == sum(option == "query=~/x" for option in options)
    assert not (tmp_path / "~").exists()


def test_check_writes_its_report(call: Callable[..., int], home: Path) -> None:
    assert call("check", "data=m2kr", "data.root=nowhere", 'report="~/made.json"') == 1
    assert (home / "made.json").is_file()


@pytest.mark.parametrize("in_file", [False, True])
def test_run_folder_is_expanded(in_file: bool, call: Callable[..., int], home: Path, tmp_path: Path) -> None:
    options = ["data=m2kr", "data.root=nowhere"]
    if in_file:
        (home / "conf/experiment").mkdir(parents=True)
        (home / "conf/experiment/mine.yaml").write_text("# @package _global_\noutput_dir: ~/made\n")
        options = ["--config-dir=~/conf", *options, "experiment=mine"]
    else:
        options.append('output_dir="~/made"')
    assert call("train", *options) == 1
    assert (home / "made/.hydra").is_dir()
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize(
    ("line", "expanded"),
    [
        ('output="~/x"', 'output="/home/me/x"'),
        ("output='~'", "output='/home/me'"),
        ("output=~", "output=/home/me"),
        ("+data.root=~/x=1", "+data.root=/home/me/x=1"),
        ("query=~/x", "query=~/x"),
        ("~data.root=~/x", "~data.root=~/x"),
        ("output=a/~/x", "output=a/~/x"),
        ("output=~x.bak", "output=~x.bak"),
    ],
)
def test_override_is_expanded(line: str, expanded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert expand_override(line) == expanded


def test_config_file_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    values = {"root": "~/x", "nested": [{"a": "~", "b": "a~"}], "same": "${root}", "gone": "???", "query": "~/x"}
    config = OmegaConf.create({**values, "none": None, "count": 1})
    OmegaConf.set_readonly(config, True)
    expand_config(config)
    assert config.root == config.same == "/home/me/x"
    assert config.nested == [{"a": "/home/me", "b": "a~"}]
    assert config.query == "~/x"
    assert os.path.expanduser("~") == "/home/me"

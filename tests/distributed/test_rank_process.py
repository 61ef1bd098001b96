"""The entry point of a rank: its command line restores the function, the config and the options."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from ret_lightning.distributed import rank_process
from ret_lightning.distributed.rank_process import PARENT_VARIABLE, main, rank_command
from ret_lightning.errors import ConfigError

CALLS: list[tuple[Any, dict[str, bool]]] = []


def train(config: DictConfig, **options: bool) -> None:
    CALLS.append((OmegaConf.to_container(config), options))
    if config.get("broken"):
        raise ConfigError("is wrong", code="test-broken")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that runs `main` with the command of `rank_command`, and returns the watched parent ids."""
    parents: list[int] = []
    monkeypatch.setattr(rank_process, "exit_with_parent", parents.append)
    monkeypatch.setenv(PARENT_VARIABLE, "123")
    CALLS.clear()

    def call(config: dict, *options: str) -> list[int]:
        file = tmp_path / "config.yaml"
        OmegaConf.save(OmegaConf.create(config), file)
        command = rank_command(train, file, options)
        assert command[:2] == [sys.executable, "-m"]
        assert import_module(command[2]) is rank_process
        monkeypatch.setattr(sys, "argv", command[2:])
        main()
        return parents

    return call


def test_rank_calls_function_with_config_and_options(run) -> None:
    assert run({"seed": 3, "nested": {"a": "${seed}"}}, "resume", "quick") == [123]
    assert CALLS == [({"seed": 3, "nested": {"a": "${seed}"}}, {"resume": True, "quick": True})]
    run({"seed": 4})
    assert CALLS[-1] == ({"seed": 4}, {})


def test_user_error_is_printed_as_one_line(run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run({"broken": True})
    assert end.value.code == 1
    assert capsys.readouterr().err == "ret-train: is wrong [test-broken]\n"


def test_rank_without_parent_does_not_start(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PARENT_VARIABLE)
    with pytest.raises(KeyError, match=PARENT_VARIABLE):
        run({"seed": 3})
    assert CALLS == []
    assert PARENT_VARIABLE not in os.environ

"""Parsing of the command line: flags of Hydra, and quoted overrides."""

from __future__ import annotations

import sys

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from ret_lightning.commands.command_line import quote_override, read_arguments
from ret_lightning.errors import ConfigError


def read(monkeypatch: pytest.MonkeyPatch, *arguments: str):
    monkeypatch.setattr(sys, "argv", ["ret-lab", *arguments])
    return read_arguments(())


def test_flags_and_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    found = read(monkeypatch, "seed=1", "gate=lstm,none", "-m", "-cd", "mine", "--config-name=other")
    assert found.overrides == ["seed=1", "gate=lstm,none"]
    assert (found.multirun, found.config_dir, found.config_name, found.run, found.cfg) == (
        True,
        "mine",
        "other",
        False,
        None,
    )
    assert read(monkeypatch, "--info").info == "all"
    assert read(monkeypatch, "-c", "job", "-p", "model", "--resolve").package == "model"


def test_sys_argv_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    found = read(monkeypatch, "--cfg", "job", "output_dir=runs/gate=lstm")
    assert found.overrides == ["output_dir='runs/gate=lstm'"]
    assert sys.argv[1:] == ["--cfg", "job", "output_dir='runs/gate=lstm'"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--bogus"], "command-line-flags"),
        (["--cfg", "everything"], "command-line-flags"),
        (["--run", "-m"], "command-line-flags"),
        (["--resolve"], "command-line-flags"),
        (["seed=1", "-m", "seed=2"], "command-line-flags"),
        (["--experimental-rerun", "job.pickle"], "rerun-unsupported"),
    ],
)
def test_invalid_flags_are_refused(monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read(monkeypatch, *arguments)
    assert raised.value.code == code


@pytest.mark.parametrize(
    "text",
    [
        "a, b",
        "it's",
        '"quoted"',
        "[x] {y} (z)",
        "a=b",
        "1984",
        "true",
        " ",
        "",
        "${oc.env:HOME}",
        r"\\${x}",
        "back\\",
        "50 % @ #1 !?",
    ],
)
def test_verbatim_value_is_unchanged(text: str) -> None:
    typed = OverridesParser.create().parse_override(quote_override(f"query={text}", ("query",)))
    assert OmegaConf.create({"query": typed.value()}).query == text
    assert quote_override(f"other={text}", ("query",)) in (f"other={text}", f"other='{text}'")
    assert quote_override("query=null", ("query",)) == "query=null"


@pytest.mark.parametrize("name", ["runs/gate+seed/gate=lstm+seed=01", "a=1,b/c=2,plain", "seed=1"])
def test_names_of_run_folders_need_no_quotes(name: str) -> None:
    typed = OverridesParser.create().parse_override(quote_override(f"resume={name}", ()))
    found = list(typed.sweep_iterator()) if typed.is_sweep_override() else [typed.value()]
    assert [getattr(each, "text", each) for each in found] == name.split(",")


@pytest.mark.parametrize("text", ["key=[a,b]", "key={a:1}", "key='x=1'", "key=1,2", "key=range(1,3)", "key=a.b/c"])
def test_other_values_are_not_quoted(text: str) -> None:
    assert quote_override(text, ()) == text

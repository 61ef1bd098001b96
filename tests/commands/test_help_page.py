"""Help page of each command: all groups and keys, and with `all` the description of each key."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
import yaml
from omegaconf import OmegaConf

from ret_lightning.commands.help_page import help_page
from ret_lightning.config.resolvers import register_resolvers
from tests.support.paths import CONF

SEARCH_PATH = ["pkg://ret_lightning.conf"]
COMMANDS = ["train", "evaluate", "index", "search", "check", "report", "export"]


def page(name: str, *overrides: str, **options: bool) -> list[str]:
    return help_page(SEARCH_PATH, name, f"ret-{name}", overrides, **options).splitlines()


def described(lines: list[str]) -> dict[str, str]:
    """Return the groups and keys of a page with their descriptions."""
    lines = lines[: lines.index("Examples")]
    rows = (re.fullmatch(r"  ([\w@.]+)(?:=\S+)?\s+(\S.*)", line) for line in lines)
    return {row[1]: row[2] for row in rows if row is not None}


def primary(name: str) -> dict[str, Any]:
    return yaml.safe_load((CONF / f"{name}.yaml").read_text())


def groups(name: str) -> list[str]:
    keys = (key for entry in primary(name)["defaults"] if isinstance(entry, dict) for key in entry)
    return [key for key in keys if not key.startswith("override")]


@pytest.mark.parametrize("name", COMMANDS)
def test_page_describes_each_group_and_key(name: str) -> None:
    lines = page(name)
    assert len(lines) <= 62
    assert max(map(len, lines)) <= 120
    keys = primary(name).keys() - {"defaults", "hydra"}
    assert described(lines).keys() == {*groups(name), *keys}
    assert [text for text in described(lines).values() if len(text) < 4 or text.endswith("...")] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_come_last(name: str) -> None:
    lines = page(name)
    examples = lines[lines.index("Examples") + 2 :]
    assert examples
    assert all(line.startswith(f"ret-{name}") for line in examples)


@pytest.mark.parametrize("name", ["train", "evaluate", "index", "check"])
def test_options_of_a_group_are_its_files(name: str) -> None:
    lines = page(name)
    for group in groups(name):
        (index,) = [number for number, line in enumerate(lines) if line.startswith(f"  {group} ")]
        options = lines[index + 1].strip().removeprefix("(no default), ").split(", ")
        assert sorted(options) == sorted(file.stem for file in (CONF / group).glob("[!_]*.yaml"))
        default = next(entry[group] for entry in primary(name)["defaults"] if group in entry)
        assert default is None or options[0] == default


def keys_of(node: Any, path: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield f"{path}{key}"
        if isinstance(value, dict):
            yield from keys_of(value, f"{path}{key}.")


@pytest.mark.parametrize(
    ("name", "overrides"), [*((name, []) for name in COMMANDS), ("train", ["gate=scalar", "data=m2kr"])]
)
def test_all_describes_each_key_of_the_config(name: str, overrides: list[str]) -> None:
    register_resolvers()
    with hydra.initialize_config_module("ret_lightning.conf", version_base="1.3"):
        config = OmegaConf.to_container(hydra.compose(name, overrides))
    lines = page(name, *overrides, every_key=True)
    listed = {line.split(":")[0].strip() for line in lines if re.match(r"  [\w.]+:", line)}
    listed |= {line.split("=")[0] for line in lines if re.match(r"[\w.]+=", line)}  # groups
    flow = {key for key in keys_of(config) if any(f"{above}: {{" in "\n".join(lines) for above in parents(key))}
    assert set(keys_of(config)) - listed - flow == set()


def parents(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def test_comments_are_those_of_the_chosen_options() -> None:
    text = "\n".join(page("train", "gate=constant", every_key=True))
    assert "gate=constant (" in text
    assert "gate._target_: ret_lightning.models.ConstantGate" in text


def test_own_folder_and_config(tmp_path: Path) -> None:
    (tmp_path / "gate").mkdir()
    (tmp_path / "gate" / "mine.yaml").write_text("# My gate.\n\nwidth: 3\n")
    (tmp_path / "lab.yaml").write_text("defaults:\n  - train\n  - _self_\n\n# Seed of the lab. A prime.\nseed: 7\n")
    found = help_page([*SEARCH_PATH, f"file://{tmp_path}"], "lab", "ret-train")
    assert "mine" in next(line for line in found.splitlines() if line.strip().startswith("lstm, "))
    assert described(found.splitlines())["seed"] == "Seed of the lab"
    assert found.startswith("ret-train trains")


@pytest.mark.parametrize(("arguments", "expected"), [([], "Config groups, group=option"), (["all"], "gate._target_: ")])
def test_command_prints_its_help(arguments: list[str], expected: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ret_lightning.commands.train", "--help", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert expected in done.stdout

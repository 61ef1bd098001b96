"""The help of each command lists the groups that it takes, with all their options, and no others."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.paths import CONF

COMMANDS = ["train", "evaluate", "index", "check"]


@pytest.mark.parametrize("name", COMMANDS)
def test_groups_and_options(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", f"ret_lightning.commands.{name}", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    listed = re.search(r"Groups, group=option\n-+\n(.*?)\n\n", done.stdout, re.S)[1]
    found = {group: options.split(", ") for group, options in (line.split(": ") for line in listed.splitlines())}
    groups = {group.name for group in CONF.iterdir() if group.is_dir()} - {"__pycache__", "hydra"}
    if name in ("evaluate", "index"):  # of their defaults alone
        defaults = yaml.safe_load((CONF / f"{name}.yaml").read_text())["defaults"]
        groups &= {key for entry in defaults if isinstance(entry, dict) for key in entry}
    if name == "check":
        groups = {"data"}
    assert found.keys() - {"hydra/launcher"} == groups
    for group in groups:
        assert found[group] == sorted(file.stem for file in (CONF / group).glob("*.yaml"))
